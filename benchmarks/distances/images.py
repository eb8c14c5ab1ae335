"""Images for the subjects: digits, clothes or photographs of ten classes, and two-digit numbers of 43."""

from pathlib import Path
from typing import Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from deepfailguard.data.base import ImageSet, Splits, check_disjoint
from deepfailguard.data.splitting import take_first
from deepfailguard.seeding import generator
from mydataset.cifar10 import CIFAR10
from mydataset.digits import Digits
from mydataset.fashion_mnist import FashionMNIST

__all__ = ["DataName", "in_colour", "ten_classes", "two_digit_numbers"]

DataName = Literal["digits", "fashion_mnist", "cifar10"]

SIDE: Final = 32
NUMBERS: Final = 43  # 0 to 42
_SHIFT: Final = 3  # pixels at most, so that a digit's few images make more
_COPIES: Final = {"train": 4, "calibration": 7, "test": 2}
_DRAWN: Final = {"train": 8000, "calibration": 2000, "test": 1000}  # two-digit numbers


def ten_classes(name: DataName, root: Path, limit: int) -> Splits:
    """A data set of ten classes.

    Args:
        name: which one.
        root: where the data files lie (digits need none).
        limit: training images (together with those for calibration, but for digits), and test images, at most.

    Raises:
        DataNotFoundError: the files are not there; it says where they can be had.
    """
    if name == "digits":
        return _shifted_digits(limit)
    source = FashionMNIST if name == "fashion_mnist" else CIFAR10
    return source(root=str(root), limit=limit).load()


def in_colour(splits: Splits) -> Splits:
    """The splits with the grey channel three times; coloured ones as they are."""
    if splits.input_shape[0] == 3:
        return splits
    parts = {part: _set_of(splits, part) for part in _COPIES}
    return splits.with_parts(**{p: ImageSet(s.images.repeat(1, 3, 1, 1), s.labels) for p, s in parts.items()})


def two_digit_numbers() -> Splits:
    """Images (3, 32, 32) of the numbers 00 to 42: two handwritten digits side by side, each at a height of its own.

    The three parts are made of different handwritten digits.
    """
    digits = Digits().load()
    parts = {part: _numbers(_set_of(digits, part), count, part) for part, count in _DRAWN.items()}
    names = tuple(f"{number:02d}" for number in range(NUMBERS))
    splits = Splits("two_digit_numbers", names, digits.bounds, **parts)
    check_disjoint(splits)
    return in_colour(splits)


def _set_of(splits: Splits, part: str) -> ImageSet:
    images: ImageSet = getattr(splits, part)
    return images


def _shifted_digits(limit: int) -> Splits:
    """Digits of 32 px, several times each at places that differ by a few pixels."""
    digits = Digits().load()
    parts = {part: _shifted(_set_of(digits, part), copies, part) for part, copies in _COPIES.items()}
    return digits.with_parts(**{part: take_first(images, limit) for part, images in parts.items()})


def _shifted(digits: ImageSet, copies: int, purpose: str) -> ImageSet:
    random = generator(0, "shifted digits", purpose)
    images, labels = _enlarged(digits.images, SIDE).repeat(copies, 1, 1, 1), digits.labels.repeat(copies)
    wide = F.pad(images, [_SHIFT] * 4)
    corner = torch.randint(2 * _SHIFT + 1, (len(images), 2), generator=random)
    rows, columns = (corner[:, axis, None] + torch.arange(SIDE) for axis in (0, 1))
    moved = wide[torch.arange(len(images))[:, None, None], 0, rows[:, :, None], columns[:, None, :]]
    return ImageSet(moved[:, None].contiguous(), labels)


def _numbers(digits: ImageSet, count: int, purpose: str) -> ImageSet:
    """Draw `count` numbers from the digits (B, 1, 8, 8)."""
    random = generator(0, "two-digit numbers", purpose)
    labels = torch.randint(NUMBERS, (count,), generator=random)
    halves = [_column(digits, wanted, random) for wanted in (labels // 10, labels % 10)]
    return ImageSet(torch.cat(halves, 3), labels)


def _column(digits: ImageSet, wanted: Tensor, random: torch.Generator) -> Tensor:
    """For each wanted digit (B,) some image of it in 16 px, somewhere in a column (B, 1, 32, 16)."""
    order = digits.labels.argsort(stable=True)
    there = digits.labels.bincount(minlength=10)
    first = there.cumsum(0) - there
    turn = (torch.rand(len(wanted), generator=random) * there[wanted]).long()
    images = _enlarged(digits.images[order[first[wanted] + turn]], SIDE // 2)
    rows = torch.randint(SIDE // 2 + 1, (len(wanted), 1), generator=random) + torch.arange(SIDE // 2)
    column = torch.zeros(len(wanted), 1, SIDE, SIDE // 2)
    column[torch.arange(len(wanted))[:, None], 0, rows] = images[:, 0]
    return column


def _enlarged(images: Tensor, side: int) -> Tensor:
    return F.interpolate(images, size=(side, side), mode="bilinear", align_corners=False).clamp(0.0, 1.0)
