"""Faults in what versions learn from. The test part is never touched, so accuracies stay honest.

They are the paper's faults 7 to 9. Calibration data are touched only where that is asked for.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from deepfailguard.data.base import ImageSet, Splits
from deepfailguard.errors import ConfigurationError, FaultNotApplicableError
from deepfailguard.faults.amounts import check_choice, check_share, draw_distinct
from deepfailguard.faults.base import ActsOn
from deepfailguard.faults.receipts import label_change, pixel_change, receipt_of
from deepfailguard.seeding import generator
from deepfailguard.types import Change, Receipt

__all__ = ["LabelNoise", "MisscaledInputs", "NoiseKind", "TooLittleData"]

NoiseKind = Literal["uniform", "pair", "shuffle_first"]
_MISSCALABLE = ("train", "calibration")


@dataclass(frozen=True, slots=True)
class MisscaledInputs:
    """Training images on another scale than those of service: a value x becomes low + factor (x - low).

    Attributes:
        factor: in (0, 1]; a half is the paper's second division after that by 255.
        parts: which parts are scaled: ``train``, and ``calibration`` for one preparation shared by both.
    """

    factor: float = 0.5
    parts: tuple[str, ...] = ("train",)

    name: ClassVar[str] = "misscaled_inputs"
    acts_on: ClassVar[ActsOn] = "training_data"
    number: ClassVar[int | None] = 7

    def __post_init__(self) -> None:
        check_share("misscaled_inputs.factor", self.factor)
        # Configurations have lists; a record that is hashed needs a tuple.
        object.__setattr__(self, "parts", tuple(self.parts))
        if not self.parts or not set(self.parts) <= set(_MISSCALABLE):
            raise ConfigurationError(
                f"misscaled_inputs.parts must be some of {', '.join(_MISSCALABLE)}, got {self.parts}; "
                "for changed test images use a fault on test data"
            )

    def apply(self, target: Splits, seed: int) -> tuple[Splits, Receipt]:
        """Scale the images; the seed is not used."""
        scaled: dict[str, ImageSet] = {}
        changes: list[Change] = []
        for part in self.parts:
            before: ImageSet = getattr(target, part)
            # Written as a difference, so that the factor 1 leaves every bit as it is.
            images = before.images - (1 - self.factor) * (before.images - target.bounds.low)
            # Rounding may step over an end of the bounds by one unit in the last place.
            images = images.clamp(target.bounds.low, target.bounds.high)
            scaled[part] = ImageSet(images, before.labels)
            changes.append(pixel_change(part, before.images, images))
        return target.with_parts(**scaled), receipt_of(self, seed, changes)


@dataclass(frozen=True, slots=True)
class LabelNoise:
    """Wrong labels on a share of the training images.

    Attributes:
        rate: share of the training images in (0, 1].
        kind: ``uniform``: any other class, each equally likely; ``pair``: always the next class (the last
            becomes the first); ``shuffle_first``: as in the paper, the labels of the first images are
            shuffled among these, so that some keep theirs (they are not counted).
    """

    rate: float = 0.3
    kind: NoiseKind = "uniform"

    name: ClassVar[str] = "label_noise"
    acts_on: ClassVar[ActsOn] = "training_data"
    number: ClassVar[int | None] = 8

    def __post_init__(self) -> None:
        check_share("label_noise.rate", self.rate)
        check_choice("label_noise.kind", self.kind, NoiseKind)

    def apply(self, target: Splits, seed: int) -> tuple[Splits, Receipt]:
        """Change labels of the train part."""
        classes = len(target.classes)
        if classes < 2:
            raise FaultNotApplicableError(f"label noise needs at least 2 classes, {target.name} has {classes}")
        before = target.train.labels
        after = before.clone()
        chosen, labels = self._draw(before.cpu(), classes, generator(seed, "label_noise"))
        after[chosen.to(before.device)] = labels.to(before.device)
        changed = target.with_parts(train=ImageSet(target.train.images, after))
        return changed, receipt_of(self, seed, [label_change("train", before, after)])

    def _draw(self, labels: Tensor, classes: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Which images get another label, and which label each of them gets."""
        count = round(self.rate * len(labels))
        if self.kind == "shuffle_first":
            return torch.arange(count), labels[torch.randperm(count, generator=rng)]
        chosen = draw_distinct(count, len(labels), rng)
        # An offset of 1 to K - 1 never leads back to the same class.
        highest = 2 if self.kind == "pair" else classes
        offset = torch.randint(1, highest, (count,), generator=rng)
        return chosen, (labels[chosen] + offset) % classes


@dataclass(frozen=True, slots=True)
class TooLittleData:
    """Only a share of the training images; the rest is dropped at random.

    Attributes:
        share: of the training images that are kept, in (0, 1]; every class keeps at least one image
            as long as that many images are kept.
    """

    share: float = 0.1

    name: ClassVar[str] = "too_little_data"
    acts_on: ClassVar[ActsOn] = "training_data"
    number: ClassVar[int | None] = 9

    def __post_init__(self) -> None:
        check_share("too_little_data.share", self.share)

    def apply(self, target: Splits, seed: int) -> tuple[Splits, Receipt]:
        """Drop images of the train part."""
        total = len(target.train)
        kept = max(1, round(self.share * total))
        order = torch.randperm(total, generator=generator(seed, "too_little_data"))
        positions = _one_of_each_class_first(order, target.train.labels.cpu())[:kept].sort().values
        changed = target.with_parts(train=target.train.take(positions.to(target.train.labels.device)))
        return changed, receipt_of(
            self, seed, [Change("train", f"{total} images", f"{kept} images", count=total - kept)]
        )


def _one_of_each_class_first(order: Tensor, labels: Tensor) -> Tensor:
    """The same order (B,) but that the first image of each class precedes all the others."""
    shuffled = labels[order]
    is_first = torch.zeros(len(order), dtype=torch.bool)
    for label in shuffled.unique():
        is_first[(shuffled == label).nonzero()[0]] = True
    return torch.cat([order[is_first], order[~is_first]])
