"""Faults in what versions are asked in service: only the test part is touched.

They are the paper's faults 10 to 12; `image_shifts` has more that need no second data set.
"""

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import torch

from deepfailguard.data.base import DatasetSource, ImageSet, Splits, check_disjoint
from deepfailguard.data.hashing import image_hashes
from deepfailguard.errors import FaultNotApplicableError
from deepfailguard.faults.amounts import check_positive
from deepfailguard.faults.base import ActsOn
from deepfailguard.faults.receipts import pixel_change, receipt_of
from deepfailguard.seeding import generator
from deepfailguard.types import Change, Receipt

__all__ = ["NaturalShiftV4", "NaturalShiftV6", "NoisyInputs", "ReplacedTestSet"]


@dataclass(frozen=True, slots=True)
class NoisyInputs:
    """Gaussian noise on every test image, cut off at the bounds.

    Attributes:
        sigma: standard deviation of the noise > 0, as a share of the width of the bounds.
        varied: whether each image has a deviation of its own, uniform in [0, sigma], as published (there up to 0.05);
            else all have sigma.
    """

    sigma: float = 0.3
    varied: bool = True

    name: ClassVar[str] = "noisy_inputs"
    acts_on: ClassVar[ActsOn] = "test_data"
    number: ClassVar[int | None] = 10

    def __post_init__(self) -> None:
        check_positive("noisy_inputs.sigma", self.sigma)

    def apply(self, target: Splits, seed: int) -> tuple[Splits, Receipt]:
        """Add noise to the test part."""
        before, bounds = target.test.images, target.bounds
        rng = generator(seed, "noisy_inputs")
        deviation = torch.full((len(before), 1, 1, 1), self.sigma * bounds.width)
        if self.varied:
            deviation *= torch.rand(deviation.shape, generator=rng)
        noise = deviation * torch.randn(before.shape, generator=rng)
        after = (before + noise.to(before.device)).clamp(bounds.low, bounds.high)
        changed = target.with_parts(test=ImageSet(after, target.test.labels))
        return changed, receipt_of(self, seed, [pixel_change("test", before, after)])


@dataclass(frozen=True, slots=True)
class ReplacedTestSet:
    """Another data set's test part in the place of the own: the same task, collected at another time.

    Attributes:
        source: where the other test part comes from; classes, input shape and bounds must be the same.
    """

    source: DatasetSource

    name: ClassVar[str] = "replaced_test_set"
    acts_on: ClassVar[ActsOn] = "test_data"
    number: ClassVar[int | None] = None

    def apply(self, target: Splits, seed: int) -> tuple[Splits, Receipt]:
        """Replace the test part; the seed is not used.

        Raises:
            FaultNotApplicableError: the other data set has other classes, shapes or bounds.
            SplitOverlapError: its test images stand in this data set's train or calibration part.
        """
        other = self.source.load()
        _check_same_task(target, other)
        changed = target.with_parts(test=other.test)
        receipt = receipt_of(self, seed, [_replacement(target, other)])
        check_disjoint(changed)
        return changed, receipt


@dataclass(frozen=True, slots=True)
class NaturalShiftV4(ReplacedTestSet):
    """The paper's fault 11: CIFAR-10.1 version 4 as the test part (Recht et al., 2018)."""

    name: ClassVar[str] = "natural_shift_v4"
    number: ClassVar[int | None] = 11


@dataclass(frozen=True, slots=True)
class NaturalShiftV6(ReplacedTestSet):
    """The paper's fault 12: CIFAR-10.1 version 6 as the test part (Recht et al., 2018)."""

    name: ClassVar[str] = "natural_shift_v6"
    number: ClassVar[int | None] = 12


def _check_same_task(own: Splits, other: Splits) -> None:
    for what in ("classes", "input_shape", "bounds"):
        expected, came = getattr(own, what), getattr(other, what)
        if expected != came:
            raise FaultNotApplicableError(
                f"the test part of {other.name} cannot replace that of {own.name}: expected the {what} {expected}, "
                f"got {came}; choose a source for the same task"
            )


def _replacement(own: Splits, other: Splits) -> Change:
    """How many labelled images came or went; the same ones in another order are no change."""
    old, new = _labelled_images(own.test), _labelled_images(other.test)
    came, went = (new - old).total(), (old - new).total()
    return Change("test", f"{len(own.test)} images of {own.name}", f"{len(other.test)} of {other.name}", came + went)


def _labelled_images(images: ImageSet) -> Counter[tuple[bytes, int]]:
    return Counter(zip(image_hashes(images.images), images.labels.tolist(), strict=True))
