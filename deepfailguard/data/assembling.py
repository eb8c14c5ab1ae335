"""From the parts that were read to checked, disjoint splits: what every data set source ends with."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch

from deepfailguard.data.base import ImageSet, Splits, check_disjoint
from deepfailguard.data.converting import AS_STORED, ImageForm, RawImages, check_limit, pixel_divisor, to_image_set
from deepfailguard.data.splitting import SPLIT_SEED, train_and_calibration
from deepfailguard.errors import DataFormatError
from deepfailguard.seeding import generator
from deepfailguard.types import Bounds

__all__ = ["TEST_SHARE", "RawParts", "assemble", "numbered_classes", "stratified_test"]

TEST_SHARE: Final = 0.2


@dataclass(frozen=True, slots=True)
class RawParts:
    """The parts that a data set comes in.

    Attributes:
        training: what train (80 %) and calibration (20 %, seed 42) are drawn from; all of it is for
            training where `calibration` is given.
        test: the test part.
        calibration: a calibration part of its own.
    """

    training: RawImages
    test: RawImages
    calibration: RawImages | None = None

    @property
    def given(self) -> list[RawImages]:
        """The parts that are there."""
        return [part for part in (self.training, self.test, self.calibration) if part is not None]

    def draw(self, limit: int | None) -> "RawParts":
        """At most `limit` images of each part, drawn with a fixed seed."""
        own = None if self.calibration is None else self.calibration.draw(limit)
        return RawParts(self.training.draw(limit), self.test.draw(limit), own)


def assemble(
    name: str,
    parts: RawParts,
    classes: Sequence[str] | None = None,
    limit: int | None = None,
    form: ImageForm = AS_STORED,
) -> Splits:
    """Convert the parts, divide the training part and check that the result is sound.

    Args:
        name: the data set's name.
        parts: what was read.
        classes: K names in label order; None: "0" to the largest label of any part.
        limit: use at most the first `limit` images of each part (>= 1); None: all. Scale and classes are
            found on all images of `parts`, so that they do not depend on it.
        form: layout, channels and size of the images.

    Raises:
        ConfigurationError: `limit` is below 1.
        DataFormatError: the scale is not clear, or labels and classes do not fit.
        SplitOverlapError: the parts share images.
    """
    check_limit(limit)
    divisor = pixel_divisor(parts.given)
    names = tuple(classes) if classes is not None else numbered_classes(parts)
    train, test, *rest = (to_image_set(part.take(slice(limit)), divisor, form) for part in parts.given)
    train, calibration = (train, rest[0]) if rest else train_and_calibration(train)
    _check_same_shape(name, (train, calibration, test))
    splits = Splits(name, names, Bounds(0.0, 1.0), train, calibration, test)
    check_disjoint(splits)
    return splits


def stratified_test(images: RawImages, share: float = TEST_SHARE) -> RawParts:
    """Split off a test part in which every class has its share: at random, seed 42.

    Args:
        images: all images that there are.
        share: of each class, in (0, 1); rounded, at least one image of a class that has two.

    Returns:
        Training and test part, each in an order that does not depend on the classes.
    """
    labels, rng = images.labels.reshape(-1), generator(SPLIT_SEED, "stratified_test")
    order = torch.randperm(len(labels), generator=rng).numpy()
    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        chosen[members[: _share_of(len(members), share)]] = True
    training, test = order[~chosen[order]], order[chosen[order]]
    if len(test) == 0:
        raise DataFormatError(f"{images.where}: no class has two images, so none can be split off for testing")
    return RawParts(images.take(training), images.take(test))


def numbered_classes(parts: RawParts) -> tuple[str, ...]:
    """Names "0" to the largest label of any part.

    Raises:
        DataFormatError: the largest label is not below the number of images.
    """
    top = max(int(part.labels.max()) for part in parts.given)
    images = sum(part.count for part in parts.given)
    if top >= images:  # also keeps a damaged label from asking for a billion names
        raise DataFormatError(
            f"{', '.join(part.where for part in parts.given)}: the largest label is {top}, but there are only {images} "
            "images; expected labels 0 to K-1"
        )
    return tuple(str(label) for label in range(top + 1))


def _share_of(count: int, share: float) -> int:
    return min(max(round(count * share), 1), count - 1)


def _check_same_shape(name: str, parts: Sequence[ImageSet]) -> None:
    shapes: list[Any] = sorted({tuple(part.images.shape[1:]) for part in parts})
    if len(shapes) > 1:
        raise DataFormatError(
            f"{name}: expected images of one shape in all parts, got {shapes}; resize them to one size"
        )
