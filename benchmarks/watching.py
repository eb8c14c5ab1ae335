"""The watched guard: how soon it notices without labels that a version broke, and what its answers are worth then.

    python benchmarks/watching.py [--quick | --development] [--data digits ...] [--json PATH]

Ensembles of the pools of decision.py serve test images in random order, in batches of 32. One version's weights get
flipped exponent bits after calibration, or the inputs change, or nothing does. What damaged versions say is asked
once and kept; everything else is recorded evidence, judged by the watched guard itself. docs/watching.md explains the
figures.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `benchmarks`, `mydataset`, `mymodel` are found

from benchmarks.decisions.ensembles import Ensemble, choose
from benchmarks.decisions.evidence import PoolEvidence
from benchmarks.decisions.images import SHIFTS, TEST
from benchmarks.decisions.keeping import JOINT
from benchmarks.decisions.options import Told, asked, finished, parser_of, run
from benchmarks.decisions.pools import DataName
from benchmarks.reporting import digest_of_code
from benchmarks.watches.damages import BITS, Damage, damaged
from benchmarks.watches.figures import Measured, as_plain, bars_for, tables
from benchmarks.watches.measuring import break_versions, shift_inputs, stay_quiet
from benchmarks.watches.serving import guard_of
from deepfailguard.device import resolve_device
from deepfailguard.guard.watched import WatchedGuard
from deepfailguard.progress import track
from deepfailguard.versions.pool import Pool
from deepfailguard.versions.version import Version

QUICK = {"versions": [3], "ensembles": 1, "damages": 3, "repeats": 1, "quiet": 10_000, "shifts": ["noise", "light"]}


def damages_of(ensemble: Ensemble, each: int) -> list[Damage]:
    """So many of each number of bits; the members take turns."""
    members = ensemble.members
    return [Damage(members[seed % len(members)], bits, seed) for bits in BITS for seed in range(each)]


def versions_of(pool: PoolEvidence, options: argparse.Namespace) -> dict[int, Version]:
    """The pool's versions by position."""
    kept = Pool(options.kept / "pools" / f"{pool.data}-{pool.seed}")
    cards = {card.fingerprint: card for card in kept.cards()}
    device = resolve_device(options.device)
    return {number: kept.load(cards[print_], device) for number, print_ in enumerate(pool.fingerprints)}


def measure(pool: PoolEvidence, options: argparse.Namespace, measured: Measured) -> None:
    """Add everything on one pool."""
    ensembles = [e for size in options.versions for e in choose(pool.members, size, options.ensembles, pool.seed)]
    versions = versions_of(pool, options)
    damages = {ensemble: damages_of(ensemble, options.damages) for ensemble in ensembles}
    folder = options.kept / "damaged" / f"{pool.data}-{pool.seed}"
    said = damaged([each for some in damages.values() for each in some], pool, versions, folder)
    streams = streams_for(options.quiet // len(options.seeds), ensembles, len(pool.truth(TEST)))
    for ensemble in track(ensembles, len(ensembles), f"serving with ensembles of {pool.data}-{pool.seed}"):
        guard = guard_of(pool, ensemble, [versions[number] for number in ensemble.members])
        measured.broken.extend(break_versions(pool, ensemble, guard, damages[ensemble], said))
        measured.shifted.extend(shift_inputs(pool, ensemble, guard, options.repeats))
        measured.quiet.append(stay_quiet(pool, ensemble, WatchedGuard(guard), streams))


def streams_for(inputs: int, ensembles: Sequence[Ensemble], each: int) -> int:
    """How many streams each ensemble serves so that there are so many inputs in all.

    >>> streams_for(1000, [Ensemble("sound", (0, 1))] * 3, 100)
    4
    """
    return -(-inputs // (len(ensembles) * each))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = parser_of(__doc__)
    parser.add_argument("--versions", nargs="+", type=int, default=[3, 5], help="numbers of versions")
    parser.add_argument("--ensembles", type=int, default=2, help="of each setting and number of versions at most")
    parser.add_argument("--damages", type=int, default=8, help="of each number of bits, for each ensemble")
    parser.add_argument("--repeats", type=int, default=2, help="streams with each shift, for each ensemble")
    parser.add_argument("--quiet", type=int, default=1_000_000, help="undisturbed inputs for each data set, at least")
    parser.add_argument("--shifts", nargs="+", choices=SHIFTS, default=list(SHIFTS), help="of the test inputs")
    return finished(parser, QUICK)


def main() -> None:
    """Measure, print, and write what was asked for."""
    options = arguments()

    def told_of(data: DataName) -> Told:
        measured = Measured(data, [], [], [])
        for seed in options.seeds:
            measure(asked(data, seed, options), options, measured)
        return Told(list(tables(measured)), as_plain(measured), bars_for(measured))

    run(options, told_of, digest_of_code(*JOINT, "deepfailguard/guard/*.py"))


if __name__ == "__main__":
    main()
