"""The images that versions are asked about: calibration, test, shifted test and rehearsed calibration images."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from benchmarks.decisions.pools import DEVELOPMENT, Draw
from deepfailguard.data.base import ImageSet, Splits
from deepfailguard.errors import DataNotFoundError
from deepfailguard.faults.image_shifts import CameraTilt, DefocusBlur, LowLight
from deepfailguard.faults.rehearsal import KINDS, Kind, Rehearsal
from deepfailguard.faults.test_data import NoisyInputs
from deepfailguard.seeding import generator
from mydataset.cifar10_1 import CIFAR101

__all__ = [
    "CALIBRATION",
    "NATURAL",
    "RELATED",
    "SHIFTS",
    "TEST",
    "Part",
    "load_parts",
    "rehearsed_part",
    "shifted_part",
]

CALIBRATION: Final = "calibration"
TEST: Final = "test"
NATURAL: Final = "natural"
SHIFTS: Final[Mapping[str, Any]] = {
    "noise": NoisyInputs(sigma=0.15, varied=False),
    "blur": DefocusBlur(radius=0.04),
    "light": LowLight(contrast=0.6, brightness=0.7),
    "tilt": CameraTilt(degrees=20.0),
}
RELATED: Final[Mapping[str, frozenset[Kind]]] = {
    "noise": frozenset({"noise"}),
    "blur": frozenset({"blur"}),
    "light": frozenset({"light", "gamma", "brightness"}),
    "tilt": frozenset({"tilt"}),
    NATURAL: frozenset(),
}
"""What must not be rehearsed where a shift is tested: changes of the same family."""


@dataclass(frozen=True, slots=True)
class Part:
    """Labelled images.

    Attributes:
        images: the images with their labels.
        source: (B,) int64, the calibration image that each was made from; None but for rehearsed ones.
    """

    images: ImageSet
    source: Tensor | None = None


def shifted_part(shift: str) -> str:
    """Name of the part with shifted test images."""
    return f"{TEST} {shift}"


def rehearsed_part(kind: str) -> str:
    """Name of the part with rehearsed calibration images."""
    return f"rehearsed {kind}"


def load_parts(
    draw: Draw, images: int, rehearsed: int, shifts: Collection[str], say: Callable[[str], None]
) -> dict[str, Part]:
    """All parts of a draw by name.

    Args:
        draw: of the data.
        images: test images at most; the same ones are shifted.
        rehearsed: calibration images at most that are changed in each way.
        shifts: which ones, of `RELATED`.
        say: gets a line where the natural shift is left out.
    """
    splits = draw.load()
    splits = splits.with_parts(test=splits.test.take(slice(images)))
    parts = {CALIBRATION: Part(splits.calibration), TEST: Part(splits.test)}
    for name in (each for each in SHIFTS if each in shifts):
        fault = SHIFTS[name]
        parts[shifted_part(name)] = Part(fault.apply(splits, draw.seed)[0].test)
    if NATURAL in shifts:
        parts |= _natural(draw, images, say)
    return parts | _rehearsed(splits, rehearsed, draw.seed)


def _rehearsed(splits: Splits, inputs: int, seed: int) -> dict[str, Part]:
    labels = splits.calibration.labels
    changed = Rehearsal(inputs, KINDS).apply(splits.calibration.images, splits.bounds, seed)
    return {rehearsed_part(c.kind): Part(ImageSet(c.images, labels[c.source]), c.source) for c in changed}


def _natural(draw: Draw, images: int, say: Callable[[str], None]) -> dict[str, Part]:
    """CIFAR-10.1 beside CIFAR-10; like the official test part it is not for development."""
    if draw.data != "cifar10" or draw.seed >= DEVELOPMENT:
        return {}
    try:
        splits = CIFAR101(root=draw.root).load()
    except DataNotFoundError as error:
        say(f"no natural shift: {error}")
        return {}
    order = torch.randperm(len(splits.test), generator=generator(draw.seed, "decision benchmark", NATURAL))
    return {shifted_part(NATURAL): Part(splits.test.take(order[:images]))}
