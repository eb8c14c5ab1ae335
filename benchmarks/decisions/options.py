"""What the benchmarks on these pools have in common: their command line, the pools that it names, their main loop."""

import argparse
import importlib.metadata
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.decisions.evidence import PoolEvidence, Versions, gather
from benchmarks.decisions.images import load_parts
from benchmarks.decisions.pools import DATA_NAMES, DEVELOPMENT, FAULTS, DataName, Draw, PoolPlan, Sizes, train_pool
from benchmarks.reporting import Bar, as_json, bar_lines, say, write_json
from deepfailguard.boundary.search.estimator import BoundarySearch
from deepfailguard.device import resolve_device
from deepfailguard.errors import DataNotFoundError

__all__ = ["Told", "asked", "finished", "parser_of", "run", "settings"]

_ROOT: Final = Path(__file__).resolve().parents[2]
_KEPT: Final = _ROOT / "outputs" / "benchmarks"
_EPOCHS: Final = {"digits": 12}  # so few images need more of them
_QUICK_EPOCHS, _QUICK_SIZES = 4, Sizes(train=600, calibration=240, test=300)
_QUICK_FAULTS: Final = ("gaussian_weight_noise",)
_PACKAGES: Final = ("torch", "scikit-learn", "numpy")
_PATHS: Final = frozenset({"json", "plot", "data_root", "kept"})


@dataclass(frozen=True, slots=True)
class Told:
    """What a benchmark tells of one data set.

    Attributes:
        lines: its tables.
        plain: its figures, ready for JSON but for NaN.
        bars: what has to be reached.
    """

    lines: Sequence[str]
    plain: dict[str, Any]
    bars: Sequence[Bar]


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """The options that all these benchmarks have; `finished` reads them."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--quick", action="store_true", help="digits, one development seed, one fault, few ensembles")
    kind.add_argument("--development", action="store_true", help=f"add {DEVELOPMENT} to the seeds")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--data", nargs="+", choices=DATA_NAMES, default=list(DATA_NAMES))
    parser.add_argument("--data-root", type=Path, default=_ROOT / "mydataset" / "data", help="folder of the data files")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help=f"below {DEVELOPMENT}")
    parser.add_argument("--images", type=int, default=2000, help="test images at most")
    parser.add_argument("--searched", type=int, default=2000, help="calibration images with distances")
    parser.add_argument("--rehearsed", type=int, default=400, help="calibration images changed in each way")
    parser.add_argument("--threads", type=int, help="of torch; as torch has it if not given")
    parser.add_argument("--device", default="auto")
    return parser


def finished(parser: argparse.ArgumentParser, quick: dict[str, Any]) -> argparse.Namespace:
    """The options given; in a quick run those of `quick` instead, and with the seeds of development.

    A benchmark without shifts of its own asks for none.
    """
    options = parser.parse_args()
    if not all(0 <= seed < DEVELOPMENT for seed in options.seeds):
        parser.error(f"--seeds must be in 0..{DEVELOPMENT - 1}; --development adds {DEVELOPMENT} to them")
    options.faults, options.kept = tuple(FAULTS), _KEPT
    options.shifts = getattr(options, "shifts", [])
    if options.quick:  # on a development seed: a run for trying must not touch the evaluation data
        options.data, options.seeds, options.faults = ["digits"], [0], _QUICK_FAULTS
        options.images, options.searched, options.rehearsed = 200, 100, 40
        options.kept = _KEPT / "quick"
        vars(options).update(quick)
    if options.quick or options.development:
        options.seeds = [DEVELOPMENT + seed for seed in options.seeds]
    return options


def asked(data: DataName, seed: int, options: argparse.Namespace) -> PoolEvidence:
    """Train a pool and ask its versions about everything, as far as no earlier run did."""
    draw = Draw(data, seed, str(options.data_root), _QUICK_SIZES if options.quick else Sizes())
    device = resolve_device(options.device)
    epochs = _QUICK_EPOCHS if options.quick else _EPOCHS.get(data, 5)
    plan = PoolPlan(draw, options.kept / "pools", epochs, options.faults)
    pool, cards = train_pool(plan, device, lambda line: say(f"{data}-{seed}: {line}"))
    parts = load_parts(draw, options.images, options.rehearsed, options.shifts, say)
    versions = Versions(pool, cards, plan.members, device)
    search, kept = BoundarySearch("fast"), options.kept / "evidence" / f"{data}-{seed}"
    return gather(draw, versions, parts, search, options.searched, kept)


def run(options: argparse.Namespace, told_of: Callable[[DataName], Told], code: str) -> None:
    """Measure one data set after the other, print, and write what was asked for.

    Args:
        options: from `finished`.
        told_of: measures a data set.
        code: digest of the code that was measured.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    results: list[dict[str, Any]] = []
    bars: list[Bar] = []
    for data in options.data:
        try:
            told = told_of(data)
        except DataNotFoundError as error:
            sys.exit(f"{Path(sys.argv[0]).name}: {error}\nHere the option is --data-root FOLDER.")
        results.append(told.plain)
        bars += told.bars
        print("\n".join([*told.lines, "", *bar_lines(told.bars)]), flush=True)
        if options.json:  # after each data set: a run that is cut short leaves what it has
            write_json(options.json, as_json(settings(options, code), {"data": results}, bars))
    print(f"\nall data sets: {bar_lines(bars)[-1]}")


def settings(options: argparse.Namespace, code: str) -> dict[str, Any]:
    """What a reader of the figures must know; no paths."""
    chosen = {name: value for name, value in vars(options).items() if name not in _PATHS}
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    machine = torch.cuda.get_device_name() if resolve_device(options.device).type == "cuda" else platform.processor()
    told = {"threads": torch.get_num_threads(), "machine": machine or platform.machine(), "packages": versions}
    return {**chosen, **told, "code": code[:12]}
