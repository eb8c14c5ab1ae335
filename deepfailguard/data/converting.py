"""Arrays of pixels and labels, as people save them, made into image sets: (B, C, H, W) float32 in [0, 1]."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from deepfailguard.data.base import ImageSet
from deepfailguard.data.splitting import SPLIT_SEED
from deepfailguard.errors import ConfigurationError, DataFormatError
from deepfailguard.seeding import generator

__all__ = ["AS_STORED", "ImageForm", "Layout", "RawImages", "check_limit", "pixel_divisor", "to_image_set"]

logger = logging.getLogger(__name__)

Layout = Literal["auto", "nchw", "nhwc"]
_CHANNELS: Final = (1, 3)
_BYTE: Final = 255.0
_ROUNDING: Final = 1e-5  # interpolation in float32 may end a little above 1
_SURELY_BYTES: Final = 128  # a float set whose brightest pixel is above this was meant as 0..255


@dataclass(frozen=True, slots=True)
class RawImages:
    """Pixels and labels as they came from files or from a user.

    Attributes:
        where: what errors name: a file, or the part.
        images: (B, H, W), (B, C, H, W) or (B, H, W, C) numbers.
        labels: (B,) or (B, 1) whole numbers >= 0.
        brightest: the pixel value that stands for 1, where the source says it; None: it is found by
            `pixel_divisor`.
    """

    where: str
    images: NDArray[Any]
    labels: NDArray[Any]
    brightest: float | None = None

    def __post_init__(self) -> None:
        if self.images.ndim not in (3, 4) or self.images.size == 0:
            raise DataFormatError(
                f"{self.where}: expected images (B, H, W), (B, C, H, W) or (B, H, W, C) with B >= 1, "
                f"got the shape {self.images.shape}"
            )
        if self.labels.dtype.kind not in "ui" or self.labels.shape not in ((self.count,), (self.count, 1)):
            raise DataFormatError(
                f"{self.where}: expected one whole-number label for each of the {self.count} images, "
                f"got labels of dtype {self.labels.dtype} and shape {self.labels.shape}"
            )

    @property
    def count(self) -> int:
        """How many images there are: B."""
        return len(self.images)

    def take(self, index: NDArray[np.int64] | slice) -> "RawImages":
        """The images at these positions."""
        return replace(self, images=self.images[index], labels=self.labels[index])

    def draw(self, limit: int | None) -> "RawImages":
        """At most `limit` images at random, always the same ones: for files that come sorted by class."""
        check_limit(limit)
        if limit is None:
            return self
        order = torch.randperm(self.count, generator=generator(SPLIT_SEED, "draw")).numpy()
        return self.take(order[:limit])


@dataclass(frozen=True, slots=True)
class ImageForm:
    """What the images shall be like.

    Attributes:
        layout: where the stored images have their channels; ``auto`` finds a 1 or a 3 among the dimensions.
        channels: C wanted; grey images are repeated to it. None: as stored.
        size: H and W wanted, resized without keeping the aspect. None: as stored.
    """

    layout: Layout = "auto"
    channels: int | None = None
    size: int | None = None


AS_STORED: Final = ImageForm()


def check_limit(limit: int | None) -> None:
    """Refuse a limit of images below 1; None stands for all of them."""
    if limit is not None and limit < 1:
        raise ConfigurationError(f"limit must be at least 1, or None for all images, got {limit}")


def pixel_divisor(parts: Sequence[RawImages]) -> float:
    """What the pixels of all parts must be divided by to lie in [0, 1].

    What the source says counts. Else assumed, and logged: whole-number pixels and floats that reach above 128
    are bytes 0..255; floats up to 1 are scaled already. All parts must agree, since one that differs would be
    dark or clipped everywhere.

    Returns:
        What the source says, else 1 or 255.

    Raises:
        DataFormatError: NaN, negative values, values above 255, floats whose brightest pixel lies in (1, 128],
            bytes that are all 0 or 1, or parts that differ in dtype or range: their scale cannot be known.
    """
    said = parts[0].brightest
    if said is not None and all(part.brightest == said for part in parts):
        return said
    names = ", ".join(dict.fromkeys(part.where for part in parts))
    kind, kinds = parts[0].images.dtype, {part.images.dtype for part in parts}
    if len(kinds) > 1 or kind.kind not in "uif":
        raise DataFormatError(
            f"{names}: expected pixels of one number type in all parts, got {', '.join(sorted(map(str, kinds)))}"
        )
    lows, tops = [float(part.images.min()) for part in parts], [float(part.images.max()) for part in parts]
    divisor = _divisor(kind, lows, tops)
    if divisor is None:
        raise DataFormatError(
            f"{names}: cannot tell the scale of {kind} pixels that span {_spans(lows, tops)}; expected bytes 0..255 or "
            "floats 0..1 (no NaN, nothing negative, all parts alike). Scale them to one of these"
        )
    logger.info("%s: %s", names, "taken as bytes 0..255" if divisor == _BYTE else "taken as scaled to 0..1 already")
    return divisor


def _spans(lows: list[float], tops: list[float]) -> str:
    return " and ".join(f"{low:g}..{top:g}" for low, top in zip(lows, tops, strict=True))


def _divisor(kind: np.dtype[Any], lows: list[float], tops: list[float]) -> float | None:
    """1, 255, or None where the range is not clear; NaN fails every comparison."""
    if not all(low >= 0 and top <= _BYTE for low, top in zip(lows, tops, strict=True)):
        return None
    if kind.kind == "f" and max(tops) <= 1 + _ROUNDING:
        return 1.0
    surely = max(tops) > (1 if kind == np.uint8 else _SURELY_BYTES)
    return _BYTE if surely and min(tops) > 1 else None


def to_image_set(part: RawImages, divisor: float, form: ImageForm = AS_STORED) -> ImageSet:
    """The part as an image set: a copy, so that the caller's arrays stay untouched.

    Args:
        part: pixels and labels.
        divisor: from `pixel_divisor` over all parts of the data set.
        form: layout, channels and size.

    Raises:
        DataFormatError: the layout is not clear, or colour images are wanted in another number of channels.
    """
    # A copy always: torch must neither alias the caller's array nor warn that a mapped one is read-only.
    images = torch.from_numpy(np.array(_channels_first(part, form.layout), dtype=np.float32, order="C"))
    images = images.div_(divisor).clamp_(max=1.0)
    images = _resized(_with_channels(images, form.channels, part.where), form.size)
    return ImageSet(images, torch.from_numpy(part.labels.reshape(-1).astype(np.int64)))


def _channels_first(part: RawImages, layout: Layout) -> NDArray[Any]:
    images = part.images
    if images.ndim == 3:
        return images[:, None]
    first, last = images.shape[1] in _CHANNELS, images.shape[3] in _CHANNELS
    if layout == "auto" and first != last:
        layout = "nchw" if first else "nhwc"
    if layout == "nchw":
        return images
    if layout == "nhwc":
        return images.transpose(0, 3, 1, 2)
    raise DataFormatError(
        f"{part.where}: expected 1 or 3 channels in either the second or the last dimension, got images of "
        f"shape {images.shape}; say layout=nchw or layout=nhwc"
    )


def _with_channels(images: Tensor, channels: int | None, where: str) -> Tensor:
    stored = images.shape[1]
    if channels is None or stored == channels:
        return images
    if stored != 1:
        raise DataFormatError(f"{where}: expected images of {channels} or 1 channels, got {stored}")
    return images.repeat(1, channels, 1, 1)


def _resized(images: Tensor, size: int | None) -> Tensor:
    if size is None or images.shape[2:] == (size, size):
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True).clamp(0, 1)
