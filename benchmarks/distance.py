"""Boundary distances by foolbox, adversarial-library, ART and by us: quality and cost on the same models and images.

    python benchmarks/distance.py [--quick] [--data fashion_mnist] [--json PATH] [--plot PATH] [--threads 1]

All methods run in one process, chunk by chunk, one after the other in an order that rotates. FPE is time in forward
passes of the same images (no gradients, batches of 128); ratios are to foolbox's L2 DeepFool. The subjects are
trained by the first run and kept in outputs/benchmarks. docs/distance.md explains the figures.
"""

import argparse
import importlib.metadata
import platform
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that `benchmarks`, `mydataset` and `mymodel` are found

from benchmarks.distances.bars import Measured, bars_for  # noqa: E402
from benchmarks.distances.figures import Row, rows_of  # noqa: E402
from benchmarks.distances.images import DataName  # noqa: E402
from benchmarks.distances.memory import WORKS, measure  # noqa: E402
from benchmarks.distances.ours import ESTIMATES, TIGHT, estimates, search, wrapper  # noqa: E402
from benchmarks.distances.peers import (  # noqa: E402
    FOOLBOX,
    FOOLBOX_DEFAULT,
    foolbox_deepfool,
    missing,
    patient_references,
)
from benchmarks.distances.plotting import plot  # noqa: E402
from benchmarks.distances.subjects import SUBJECTS, Recipe, Subject, load_subject  # noqa: E402
from benchmarks.distances.tables import memory_line, row_lines  # noqa: E402
from benchmarks.distances.timing import Method, interleave, works  # noqa: E402
from benchmarks.reporting import Bar, as_json, bar_lines, say, write_json  # noqa: E402
from deepfailguard.boundary.search.effort import EFFORTS  # noqa: E402
from deepfailguard.device import resolve_device  # noqa: E402
from deepfailguard.errors import DataNotFoundError  # noqa: E402
from deepfailguard.seeding import seed_everything  # noqa: E402

SMALL = ("compact_cnn", "compact_resnet")  # for quick runs, and for what works image by image
PACKAGES = ("torch", "foolbox", "adv-lib", "adversarial-robustness-toolbox", "numba", "numpy")


def all_rows(subject: Subject, options: argparse.Namespace) -> dict[str, Row]:
    """foolbox, our searches and our estimates on all images."""
    say(f"{subject.name}: teaching the learned distance")
    candidates = max(10, subject.classes)
    methods = [foolbox_deepfool(candidates=candidates), *map(search, EFFORTS)]
    methods += [] if options.quick else [wrapper()]
    if subject.classes > 10:
        methods.append(foolbox_deepfool(FOOLBOX_DEFAULT))
    methods += estimates(subject.model, subject.calibration[: options.calibration])
    return rows(subject, methods, options.images, options.chunk)


def patient_rows(subject: Subject, options: argparse.Namespace) -> dict[str, Row]:
    """What takes long, on few images; with foolbox and our searches beside it."""
    bank = subject.calibration[: options.calibration].to(subject.test.device)
    references = patient_references(subject.classes, bank, subject.name in SMALL)
    references = [each for each in references if works(each, subject.model, subject.test, print)]
    if not references:
        return {}
    methods = [foolbox_deepfool(candidates=max(10, subject.classes)), *map(search, EFFORTS), *references]
    return rows(subject, methods, options.patient_images, options.chunk)


def rows(subject: Subject, methods: list[Method], images: int, chunk: int) -> dict[str, Row]:
    """Measure methods side by side."""
    seed_everything(0, "distance benchmark", "methods")
    test = subject.test[:images]
    chunks = [part for part in test.split(chunk) if len(part) == min(chunk, len(test))]  # times of equal work
    traces = interleave(methods, subject.model, chunks, lambda line: say(f"{subject.name}: {line}"))
    return rows_of(traces, FOOLBOX, TIGHT, frozenset(ESTIMATES))


def measured(subject: Subject, options: argparse.Namespace) -> Measured:
    """All figures of a subject."""
    first = all_rows(subject, options)
    patient = {} if options.quick else patient_rows(subject, options)
    say(f"{subject.name}: peak memory")
    memory = {work: measure(subject, work) for work in WORKS if not (options.quick and work == "foolbox")}
    known = {str(work): count for work, count in memory.items() if count is not None}
    return Measured(subject.name, subject.classes, subject.accuracy, first, patient, known)


def report(result: Measured, bars: list[Bar]) -> None:
    """Print a subject's tables and bars."""
    print(f"\n{result.subject}: {result.classes} classes, accuracy {result.accuracy:.3f}")
    print("\n".join(row_lines(result.rows.values())))
    if result.patient:
        print("beside what takes long, on few images:")
        print("\n".join(row_lines(result.patient.values())))
    print(memory_line(result.memory))
    print("\n".join(bar_lines(bars)), flush=True)


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """What a reader of the figures must know; no paths."""
    chosen = {name: value for name, value in vars(options).items() if name not in {"json", "plot", "data_root"}}
    versions = {name: version(name) for name in PACKAGES}
    machine = torch.cuda.get_device_name() if resolve_device(options.device).type == "cuda" else platform.processor()
    told = {"threads": torch.get_num_threads(), "machine": machine or platform.machine(), "versions": versions}
    return {**chosen, **told}


def version(package: str) -> str | None:
    """Of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="digits, two subjects, few images, no slow references")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--plot", type=Path, help="draw quality against cost in this PNG")
    parser.add_argument("--data", choices=get_args(DataName), default="digits", help="of the subjects with 10 classes")
    parser.add_argument("--data-root", type=Path, default=ROOT / "mydataset" / "data", help="folder of the data files")
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=None, help="all of them if not given")
    parser.add_argument("--images", type=int, default=256, help="to measure on")
    parser.add_argument("--chunk", type=int, default=128, help="images at once")
    parser.add_argument("--patient-images", type=int, default=64, help="for the references that take long")
    parser.add_argument("--calibration", type=int, default=1000, help="images that the learned distance is taught on")
    parser.add_argument("--threads", type=int, help="of torch; as torch has it if not given")
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


def shortened(options: argparse.Namespace) -> argparse.Namespace:
    """The options of a quick run."""
    if options.quick:
        options.data, options.images, options.chunk, options.calibration = "digits", 96, 48, 160
    options.subjects = options.subjects or (SMALL if options.quick else SUBJECTS)
    return options


def main() -> None:
    """Measure, print, and write what was asked for."""
    options = shortened(arguments())
    if options.threads:
        torch.set_num_threads(options.threads)
    recipe = Recipe(options.data, limit=1536, epochs=4) if options.quick else Recipe(options.data)
    device, folder = resolve_device(options.device), ROOT / "outputs" / "benchmarks"
    print("\n".join(missing()))
    results, bars = [], []
    for name in options.subjects:
        try:
            subject = load_subject(name, recipe, device, options.data_root, folder, say)
        except DataNotFoundError as error:
            sys.exit(f"distance.py: {error}\nHere the option is --data-root FOLDER.")
        results.append(measured(subject, options))
        bars.append(bars_for(results[-1]))
        report(results[-1], bars[-1])
        if options.json:  # after each subject: a run that is cut short leaves what it has
            content = {"subjects": [asdict(each) for each in results]}
            write_json(options.json, as_json(settings(options), content, [bar for each in bars for bar in each]))
    print(f"\nall subjects: {bar_lines([bar for each in bars for bar in each])[-1]}")
    if options.plot:
        plot(results, options.plot)


if __name__ == "__main__":
    main()
