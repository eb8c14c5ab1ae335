"""Asking one version after the other: how many an input takes, what that costs, and what it loses.

    python benchmarks/cascade.py [--quick | --development] [--data digits ...] [--ensembles 3] [--json PATH]

Ensembles of five from the pools of decision.py; `StagedPredictor` asks their versions in three orders. Forward passes
of all families are timed in the same run. docs/decision.md explains the figures.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `benchmarks`, `mydataset`, `mymodel` are found

from benchmarks.cascades.figures import as_plain, bars_for, row_lines
from benchmarks.cascades.measuring import Cascade, measure_cascades
from benchmarks.cascades.timing import family_seconds
from benchmarks.decisions.ensembles import choose
from benchmarks.decisions.evidence import PoolEvidence
from benchmarks.decisions.images import TEST
from benchmarks.decisions.keeping import JOINT
from benchmarks.decisions.options import Told, asked, finished, parser_of, run
from benchmarks.decisions.pools import DataName
from benchmarks.reporting import digest_of_code
from deepfailguard.device import resolve_device

CODE = (
    *JOINT,
    "deepfailguard/predictor/staged.py",
    "deepfailguard/decision/*.py",
    *(f"benchmarks/cascades/{name}.py" for name in ("measuring", "timing")),
)


def seconds_by_family(pool: PoolEvidence, options: argparse.Namespace) -> dict[str, float]:
    """Of one image."""
    images, classes = pool.parts[TEST].images.images, int(pool.said[TEST][0].logits.shape[1])
    return family_seconds(images, classes, resolve_device(options.device))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = parser_of(__doc__)
    parser.add_argument("--versions", type=int, default=5, help="of each ensemble")
    parser.add_argument("--ensembles", type=int, default=3, help="of each setting at most")
    return finished(parser, {"ensembles": 1})


def main() -> None:
    """Measure, print, and write what was asked for."""
    options = arguments()
    code = digest_of_code(*CODE)

    def told_of(data: DataName) -> Told:
        cascades: list[Cascade] = []
        for seed in options.seeds:
            pool = asked(data, seed, options)
            seconds = seconds_by_family(pool, options)
            ensembles = choose(pool.members, options.versions, options.ensembles, seed)
            folder = options.kept / "cascades" / f"{data}-{seed}"
            cascades += measure_cascades(pool, ensembles, seconds, folder, code)
        lines = [f"\n{data}: cascades of {options.versions} versions", *row_lines(cascades)]
        return Told(lines, as_plain(data, cascades), bars_for(data, cascades))

    run(options, told_of, code)


if __name__ == "__main__":
    main()
