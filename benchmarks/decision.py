"""Decision rules side by side: how much of the way from the majority vote to the oracle each of them comes.

    python benchmarks/decision.py [--quick | --development] [--data digits ...] [--json PATH] [--plot PATH]

Pools, evidence and outcomes are kept in outputs/benchmarks: a run that was cut short goes on where it was, and runs
on several data sets or seeds may go side by side. Seeds 0 and up are the evaluation; methods are made with
--development, whose seeds start at 100 and never see the official test parts. docs/decision.md explains the figures.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `benchmarks`, `mydataset`, `mymodel` are found

from benchmarks.decisions.bars import Measured, bars_for, figures_of
from benchmarks.decisions.ensembles import Ensemble, choose
from benchmarks.decisions.evidence import PoolEvidence
from benchmarks.decisions.images import RELATED
from benchmarks.decisions.options import Told, asked, finished, parser_of, run
from benchmarks.decisions.outcomes import Outcome, code_digest, measure_pool, some_of_each
from benchmarks.decisions.plotting import plot
from benchmarks.decisions.pools import DataName
from benchmarks.decisions.tables import as_plain, row_lines, setting_lines, shift_lines

QUICK = {"versions": [2, 3], "ensembles": 1, "shift_ensembles": 1, "shifts": ["noise"], "shift_versions": [2]}


def ensembles_of(pool: PoolEvidence, seed: int, options: argparse.Namespace) -> list[Ensemble]:
    """The ensembles of a pool, of all sizes."""
    return [each for size in options.versions for each in choose(pool.members, size, options.ensembles, seed)]


def outcomes_of(data: DataName, options: argparse.Namespace) -> Iterator[Outcome]:
    """How all rules did on a data set."""
    code = code_digest()
    for seed in options.seeds:
        pool = asked(data, seed, options)
        ensembles = ensembles_of(pool, seed, options)
        sizes = options.shift_versions or options.versions
        shifted = some_of_each([e for e in ensembles if len(e.members) in sizes], options.shift_ensembles)
        yield from measure_pool(pool, ensembles, shifted, options.kept / "outcomes" / f"{data}-{seed}", code)


def lines_of(measured: Measured) -> Iterator[str]:
    """A data set's tables."""
    for size, rows in measured.by_versions.items():
        yield f"\n{measured.data}, {size} versions, {rows[0].ensembles} ensembles"
        yield from row_lines(rows)
    yield f"\n{measured.data}, by setting, all numbers of versions (in brackets: ensembles)"
    yield from setting_lines(measured)
    yield f"\n{measured.data}, inputs of another kind; changes of the tested family were not rehearsed"
    yield from shift_lines(measured.shifts)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = parser_of(__doc__)
    parser.add_argument("--plot", type=Path, help="draw rescue shares in this PNG")
    parser.add_argument("--versions", nargs="+", type=int, default=[2, 3, 4, 5], help="numbers of versions")
    parser.add_argument("--ensembles", type=int, default=12, help="of each setting and number of versions at most")
    parser.add_argument("--shift-ensembles", type=int, default=3, help="of these, on shifted inputs")
    parser.add_argument("--shift-versions", nargs="+", type=int, help="numbers of versions on shifted inputs; all")
    parser.add_argument("--shifts", nargs="+", choices=RELATED, default=list(RELATED), help="of the test inputs")
    return finished(parser, QUICK)


def main() -> None:
    """Measure, print, and write what was asked for."""
    options = arguments()
    results: list[Measured] = []

    def told_of(data: DataName) -> Told:
        results.append(figures_of(data, list(outcomes_of(data, options))))
        if options.plot:  # after each data set, as the figures are written
            plot(results, options.plot)
        return Told(list(lines_of(results[-1])), as_plain(results[-1]), bars_for(results[-1]))

    run(options, told_of, code_digest())


if __name__ == "__main__":
    main()
