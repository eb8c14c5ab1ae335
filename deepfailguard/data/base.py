"""Image sets, the three splits of a data set, and the protocol of whoever loads one."""

import re
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from deepfailguard.data.hashing import image_hashes
from deepfailguard.errors import ConfigurationError, DataFormatError, SplitOverlapError
from deepfailguard.identity import digest_tensors
from deepfailguard.types import Bounds

__all__ = ["DatasetSource", "ImageSet", "Splits", "check_disjoint"]

# Real data sets hold a few identical images by nature; more than this share means a leak.
_NATURAL_DUPLICATES = 0.02


@dataclass(frozen=True)
class ImageSet:
    """Images with their labels.

    Attributes:
        images: (B, C, H, W) float32, inside the data set's bounds.
        labels: (B,) int64 in [0, K).
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        for part in ("images", "labels"):
            if not isinstance(getattr(self, part), Tensor):
                kind = type(getattr(self, part)).__name__
                raise DataFormatError(f"{part} must be a torch tensor, got a {kind}; use torch.as_tensor")
        if self.images.ndim != 4 or self.images.dtype != torch.float32:
            raise DataFormatError(
                f"images must be a float32 tensor (B, C, H, W), got {self.images.dtype} {tuple(self.images.shape)}"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise DataFormatError(
                f"labels must be class numbers (not one-hot) in an int64 tensor ({len(self.images)},), "
                f"got {self.labels.dtype} {tuple(self.labels.shape)}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over every byte of images and labels."""
        return digest_tensors({"images": self.images, "labels": self.labels})

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def take(self, index: Tensor | slice) -> "ImageSet":
        """The images at these positions."""
        return ImageSet(self.images[index], self.labels[index])


@dataclass(frozen=True)
class Splits:
    """A data set in three disjoint parts.

    Attributes:
        name: the data set's name; versions trained on it are filed under it.
        classes: the K class names in label order.
        bounds: the range of the input values.
        train: what versions learn from.
        calibration: what the failure predictor learns from.
        test: what is reported.
    """

    name: str
    classes: tuple[str, ...]
    bounds: Bounds
    train: ImageSet
    calibration: ImageSet
    test: ImageSet

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.+-]+", self.name):
            raise ConfigurationError(
                f"a data set's name becomes a folder: expected letters, digits and _ . + -, got {self.name!r}"
            )
        for part in ("train", "calibration", "test"):
            self._check(part, getattr(self, part))

    def _check(self, part: str, images: ImageSet) -> None:
        if len(images) == 0:
            raise DataFormatError(f"{self.name}: the {part} split is empty")
        outside = self.bounds.outside(images.images)
        if outside.any():
            first = int(outside.nonzero()[0])
            raise DataFormatError(
                f"{self.name}: {int(outside.sum())} {part} images (the first is number {first}) have values that are "
                f"NaN or outside the bounds [{self.bounds.low}, {self.bounds.high}]; scale them or correct the bounds"
            )
        low, high = int(images.labels.min()), int(images.labels.max())
        if low < 0 or high >= len(self.classes):
            raise DataFormatError(
                f"{self.name}: {part} labels span {low}..{high}, but there are {len(self.classes)} classes"
            )

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return self.test.image_shape

    def with_parts(
        self, train: ImageSet | None = None, calibration: ImageSet | None = None, test: ImageSet | None = None
    ) -> "Splits":
        """A copy with other images in the given parts."""
        return replace(
            self,
            train=self.train if train is None else train,
            calibration=self.calibration if calibration is None else calibration,
            test=self.test if test is None else test,
        )


@runtime_checkable
class DatasetSource(Protocol):
    """Anything with a `load` that returns the splits; a user's class need not import us otherwise."""

    def load(self) -> Splits:
        """Read the data set and split it."""
        ...


def check_disjoint(splits: Splits) -> None:
    """Refuse splits that share images beyond the few natural duplicates of real data.

    Raises:
        SplitOverlapError: more than 2 % of a split's images stand in another one too.
    """
    hashes = {part: set(image_hashes(getattr(splits, part).images)) for part in ("train", "calibration", "test")}
    for first, second in (("train", "calibration"), ("train", "test"), ("calibration", "test")):
        shared = len(hashes[first] & hashes[second])
        smaller = min(len(hashes[first]), len(hashes[second]))
        if shared > _NATURAL_DUPLICATES * smaller:
            raise SplitOverlapError(
                f"{splits.name}: {shared} images stand in both {first} and {second}; "
                "figures on them would be too good. Split the data anew so that no image is in two parts"
            )
