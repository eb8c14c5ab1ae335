"""Promised risks: does the bound hold as often as it says, and how much is answered under it?

    python benchmarks/risk.py [--quick | --development] [--data digits ...] [--ensembles 3] [--json PATH]

Ensembles from the pools of decision.py. The guard's failure probabilities are fixed; 200 calibrations are drawn from
each ensemble's test inputs, whose true risk is known at every threshold. docs/decision.md explains the figures.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `benchmarks`, `mydataset`, `mymodel` are found

from benchmarks.bounds.figures import as_plain, bars_for, row_lines, rows_of, sets_lines, sets_rows
from benchmarks.bounds.simulating import Trials, World, keep_promises, keep_sets, world_of
from benchmarks.bounds.thresholds import thresholds
from benchmarks.decisions.ensembles import choose
from benchmarks.decisions.images import TEST
from benchmarks.decisions.judging import class_probability
from benchmarks.decisions.keeping import JOINT
from benchmarks.decisions.options import Told, asked, finished, parser_of, run
from benchmarks.decisions.pools import DataName
from benchmarks.reporting import digest_of_code
from deepfailguard.progress import track

RISKS = (0.01, 0.02, 0.05)
MISS_RATES = (0.05, 0.1)
CONFIDENCE = 0.95


def worlds_of(data: DataName, options: argparse.Namespace, code: str) -> Iterator[World]:
    """The answers of all ensembles of a data set to their test inputs."""
    for seed in options.seeds:
        pool = asked(data, seed, options)
        folder = options.kept / "judged" / f"{data}-{seed}"
        for ensemble in choose(pool.members, options.versions, options.ensembles, seed):
            members = ensemble.members
            probability = class_probability(pool, members, folder, code)
            name = f"{data} {seed} {', '.join(str(pool.members[number]) for number in members)}"
            yield world_of(name, pool.of(TEST, members), probability, pool.truth(TEST))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = parser_of(__doc__)
    parser.add_argument("--versions", type=int, default=3, help="of each ensemble")
    parser.add_argument("--ensembles", type=int, default=3, help="of each setting at most")
    parser.add_argument("--draws", type=int, default=200, help="simulated calibrations of each ensemble")
    parser.add_argument("--inputs", type=int, default=1000, help="of each simulated calibration")
    return finished(parser, {"ensembles": 1})


def main() -> None:
    """Measure, print, and write what was asked for."""
    options = arguments()
    code = digest_of_code(*JOINT)
    trials = Trials(options.draws, options.inputs, CONFIDENCE)

    def told_of(data: DataName) -> Told:
        worlds = list(worlds_of(data, options, code))
        kept, sets = [], []
        for world in track(worlds, len(worlds), f"simulating calibrations of {data}"):
            kept += [keep_promises(world, way, each, a, trials) for a in RISKS for way, each in thresholds().items()]
            sets += [keep_sets(world, rate, trials) for rate in MISS_RATES]
        rows, of_sets = rows_of(kept), sets_rows(sets)
        head = f"{len(worlds)} ensembles, {options.draws} calibrations of {options.inputs} inputs each"
        lines = [f"\n{data}: {head}", *row_lines(rows), f"\n{data}: prediction sets", *sets_lines(of_sets)]
        return Told(lines, as_plain(data, rows, of_sets), bars_for(data, rows, of_sets, CONFIDENCE))

    run(options, told_of, code)


if __name__ == "__main__":
    main()
