"""Decision rules side by side: how much of the way from the majority vote to the oracle each of them comes.

    python benchmarks/decision.py [--quick | --development] [--data digits ...] [--json PATH] [--plot PATH]

Pools, evidence and outcomes are kept in outputs/benchmarks: a run that was cut short goes on where it was, and runs
on several data sets or seeds may go side by side. Seeds 0 and up are the evaluation; methods are made with
--development, whose seeds start at 100 and never see the official test parts. docs/decision.md explains the figures.
"""

import argparse
import importlib.metadata
import json
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that `benchmarks`, `mydataset` and `mymodel` are found

from benchmarks.decisions.bars import Measured, bars_for, figures_of  # noqa: E402
from benchmarks.decisions.ensembles import Ensemble, choose  # noqa: E402
from benchmarks.decisions.evidence import PoolEvidence, Versions, gather  # noqa: E402
from benchmarks.decisions.images import RELATED, load_parts  # noqa: E402
from benchmarks.decisions.outcomes import Outcome, code_digest, measure_pool, some_of_each  # noqa: E402
from benchmarks.decisions.plotting import plot  # noqa: E402
from benchmarks.decisions.pools import (  # noqa: E402
    DATA_NAMES,
    DEVELOPMENT,
    FAULTS,
    DataName,
    Draw,
    PoolPlan,
    Sizes,
    train_pool,
)
from benchmarks.decisions.tables import as_json, row_lines, setting_lines, shift_lines  # noqa: E402
from benchmarks.distances.bars import Bar  # noqa: E402
from benchmarks.distances.tables import bar_lines  # noqa: E402
from deepfailguard.boundary.search.estimator import BoundarySearch  # noqa: E402
from deepfailguard.device import resolve_device  # noqa: E402
from deepfailguard.errors import DataNotFoundError  # noqa: E402
from deepfailguard.store import save_text  # noqa: E402

KEPT = ROOT / "outputs" / "benchmarks"
EPOCHS = {"digits": 12}  # so few images need more of them
QUICK_EPOCHS, QUICK_SIZES = 4, Sizes(train=600, calibration=240, test=300)
QUICK_FAULTS = ("gaussian_weight_noise",)
PACKAGES = ("torch", "scikit-learn", "numpy")


def say(line: str) -> None:
    """Progress, beside the results."""
    print(f"  ... {line}", file=sys.stderr, flush=True)


def asked(data: DataName, seed: int, options: argparse.Namespace) -> PoolEvidence:
    """Train a pool and ask its versions about everything, as far as no earlier run did."""
    draw = Draw(data, seed, str(options.data_root), QUICK_SIZES if options.quick else Sizes())
    device = resolve_device(options.device)
    epochs = QUICK_EPOCHS if options.quick else EPOCHS.get(data, 5)
    plan = PoolPlan(draw, options.kept / "pools", epochs, options.faults)
    pool, cards = train_pool(plan, device, lambda line: say(f"{data}-{seed}: {line}"))
    parts = load_parts(draw, options.images, options.rehearsed, options.shifts, say)
    versions = Versions(pool, cards, plan.members, device)
    search, kept = BoundarySearch("fast"), options.kept / "evidence" / f"{data}-{seed}"
    return gather(draw, versions, parts, search, options.searched, kept)


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


def report(measured: Measured, bars: list[Bar]) -> None:
    """Print a data set's tables and bars."""
    for size, rows in measured.by_versions.items():
        print(f"\n{measured.data}, {size} versions, {rows[0].ensembles} ensembles")
        print("\n".join(row_lines(rows)))
    print(f"\n{measured.data}, by setting, all numbers of versions (in brackets: ensembles)")
    print("\n".join(setting_lines(measured)))
    print(f"\n{measured.data}, inputs of another kind; changes of the tested family were not rehearsed")
    print("\n".join(shift_lines(measured.shifts)))
    print("\n" + "\n".join(bar_lines(bars)), flush=True)


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """What a reader of the figures must know; no paths."""
    chosen = {name: value for name, value in vars(options).items() if name not in {"json", "plot", "data_root", "kept"}}
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    machine = torch.cuda.get_device_name() if resolve_device(options.device).type == "cuda" else platform.processor()
    told = {"threads": torch.get_num_threads(), "machine": machine or platform.machine(), "packages": versions}
    return {**chosen, **told, "code": code_digest()[:12]}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write the figures."""
    save_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--quick", action="store_true", help="digits, one development seed, one fault, few ensembles")
    kind.add_argument("--development", action="store_true", help=f"add {DEVELOPMENT} to the seeds")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--plot", type=Path, help="draw rescue shares in this PNG")
    parser.add_argument("--data", nargs="+", choices=DATA_NAMES, default=list(DATA_NAMES))
    parser.add_argument("--data-root", type=Path, default=ROOT / "mydataset" / "data", help="folder of the data files")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help=f"below {DEVELOPMENT}")
    parser.add_argument("--versions", nargs="+", type=int, default=[2, 3, 4, 5], help="numbers of versions")
    parser.add_argument("--ensembles", type=int, default=12, help="of each setting and number of versions at most")
    parser.add_argument("--shift-ensembles", type=int, default=3, help="of these, on shifted inputs")
    parser.add_argument("--shift-versions", nargs="+", type=int, help="numbers of versions on shifted inputs; all")
    parser.add_argument("--shifts", nargs="+", choices=RELATED, default=list(RELATED), help="of the test inputs")
    parser.add_argument("--images", type=int, default=2000, help="test images at most")
    parser.add_argument("--searched", type=int, default=2000, help="calibration images with distances")
    parser.add_argument("--rehearsed", type=int, default=400, help="calibration images changed in each way")
    parser.add_argument("--threads", type=int, help="of torch; as torch has it if not given")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    if not all(0 <= seed < DEVELOPMENT for seed in options.seeds):
        parser.error(f"--seeds must be in 0..{DEVELOPMENT - 1}; --development adds {DEVELOPMENT} to them")
    return shortened(options)


def shortened(options: argparse.Namespace) -> argparse.Namespace:
    """The options of a quick run, and the seeds of development."""
    options.faults, options.kept = tuple(FAULTS), KEPT
    if options.quick:  # on a development seed: a run for trying must not touch the evaluation data
        options.data, options.seeds, options.faults = ["digits"], [0], QUICK_FAULTS
        options.versions, options.ensembles, options.shift_ensembles = [2, 3], 1, 1
        options.shifts, options.shift_versions = ["noise"], [2]
        options.images, options.searched, options.rehearsed = 200, 100, 40
        options.kept = KEPT / "quick"
    if options.quick or options.development:
        options.seeds = [DEVELOPMENT + seed for seed in options.seeds]
    return options


def main() -> None:
    """Measure, print, and write what was asked for."""
    options = arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    results: list[Measured] = []
    bars: list[list[Bar]] = []
    for data in options.data:
        try:
            results.append(figures_of(data, list(outcomes_of(data, options))))
        except DataNotFoundError as error:
            sys.exit(f"decision.py: {error}\nHere the option is --data-root FOLDER.")
        bars.append(bars_for(results[-1]))
        report(results[-1], bars[-1])
        if options.json:  # after each data set: a run that is cut short leaves what it has
            write_json(options.json, as_json(settings(options), results, [bar for each in bars for bar in each]))
        if options.plot:
            plot(results, options.plot)
    print(f"\nall data sets: {bar_lines([bar for each in bars for bar in each])[-1]}")


if __name__ == "__main__":
    main()
