"""Failure prediction: do predicted failure probabilities tell wrong answers better than every single score?

    python benchmarks/failures.py [--quick | --development] [--data digits ...] [--json PATH]

Every version of the pools of decision.py is judged in ensembles of three, and alone. The predictors learn from the
answers of the very versions that they judge to calibration inputs, and from changed inputs; they never see another
faulty version, so that every fault is one that was not seen in training. docs/decision.md explains the figures.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `benchmarks`, `mydataset`, `mymodel` are found

from benchmarks.decisions.evidence import PoolEvidence
from benchmarks.decisions.keeping import JOINT
from benchmarks.decisions.options import Told, asked, finished, parser_of, run
from benchmarks.decisions.pools import DataName
from benchmarks.failing.figures import as_plain, bars_for, judge_lines, version_lines
from benchmarks.failing.measuring import Judged, judge_pool
from benchmarks.failing.steadiness import Steadiness, judge_stability
from benchmarks.reporting import digest_of_code
from deepfailguard.device import resolve_device
from deepfailguard.versions.pool import Pool
from deepfailguard.versions.version import Version


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = parser_of(__doc__)
    parser.add_argument("--draws", type=int, default=4, help="ensembles that each version takes part in, at least")
    return finished(parser, {"draws": 1})


def loader_of(pool: PoolEvidence, options: argparse.Namespace) -> Callable[[int], Version]:
    """A function that loads a version of the pool by its position."""
    kept = Pool(options.kept / "pools" / f"{pool.data}-{pool.seed}")
    cards = {card.fingerprint: card for card in kept.cards()}
    return lambda number: kept.load(cards[pool.fingerprints[number]], resolve_device(options.device))


def judge(pool: PoolEvidence, options: argparse.Namespace, code: str) -> list[Judged]:
    """Judge all versions of a pool, as far as no earlier run did."""
    name = f"{pool.data}-{pool.seed}"
    judged = judge_pool(pool, options.draws, options.kept / "judged" / name, code)
    return judge_stability(judged, Steadiness(pool, loader_of(pool, options), options.kept / "stability" / name))


def main() -> None:
    """Measure, print, and write what was asked for."""
    options = arguments()
    code = digest_of_code(*JOINT)

    def told_of(data: DataName) -> Told:
        judged: list[Judged] = []
        for seed in options.seeds:
            judged += judge(asked(data, seed, options), options, code)
        lines = [f"\n{data}: means over versions", *judge_lines(judged)]
        lines += [f"\n{data}: the joint predictor in ensembles of 3 against all single scores", *version_lines(judged)]
        return Told(lines, as_plain(data, judged), bars_for(data, judged))

    run(options, told_of, code)


if __name__ == "__main__":
    main()
