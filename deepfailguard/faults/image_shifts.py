"""What cameras do to images in service: defocus, too little light, tilt. Only the test part is touched.

These shifts fit any data set, where the natural shifts of the paper need a second collected test set.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from deepfailguard.data.base import ImageSet, Splits
from deepfailguard.faults.amounts import check_positive, check_share
from deepfailguard.faults.base import ActsOn, Fault
from deepfailguard.faults.receipts import pixel_change, receipt_of
from deepfailguard.seeding import generator
from deepfailguard.types import Receipt

__all__ = ["CameraTilt", "DefocusBlur", "LowLight", "blurred", "gaussian_kernel"]

# Beyond three deviations a Gaussian kernel has 0.3 % of its weight.
_KERNEL_DEVIATIONS = 3
_PIECE = 512  # images at once, so that large test sets fit in memory


@dataclass(frozen=True, slots=True)
class DefocusBlur:
    """A camera out of focus: a Gaussian blur.

    Attributes:
        radius: standard deviation of the kernel > 0, as a share of the image's shorter side.
    """

    radius: float = 0.06

    name: ClassVar[str] = "defocus_blur"
    acts_on: ClassVar[ActsOn] = "test_data"
    number: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        check_positive("defocus_blur.radius", self.radius)

    def apply(self, target: Splits, seed: int) -> tuple[Splits, Receipt]:
        """Blur the test part; the seed is not used."""
        images = target.test.images
        kernel = gaussian_kernel(self.radius * min(images.shape[2:])).to(images.device)
        return _with_test_images(self, target, blurred(images, kernel), seed)


@dataclass(frozen=True, slots=True)
class LowLight:
    """Dusk: contrast falls towards each image's mean, then everything gets darker.

    Attributes:
        contrast: in (0, 1], what is left of the differences from the image's mean.
        brightness: in (0, 1], what is left of the height above the lower bound.
    """

    contrast: float = 0.5
    brightness: float = 0.5

    name: ClassVar[str] = "low_light"
    acts_on: ClassVar[ActsOn] = "test_data"
    number: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        check_share("low_light.contrast", self.contrast)
        check_share("low_light.brightness", self.brightness)

    def apply(self, target: Splits, seed: int) -> tuple[Splits, Receipt]:
        """Darken the test part; the seed is not used."""
        images, low = target.test.images, target.bounds.low
        # Written as differences, so that contrast 1 and brightness 1 leave every bit as it is.
        flat = images - (1 - self.contrast) * (images - images.mean(dim=(1, 2, 3), keepdim=True))
        return _with_test_images(self, target, flat - (1 - self.brightness) * (flat - low), seed)


@dataclass(frozen=True, slots=True)
class CameraTilt:
    """A camera that is not level: each image is turned about its centre; corners repeat the edge.

    Attributes:
        degrees: largest angle in (0, 180]; each image's angle is uniform in [-degrees, degrees].
    """

    degrees: float = 20.0

    name: ClassVar[str] = "camera_tilt"
    acts_on: ClassVar[ActsOn] = "test_data"
    number: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        check_share("camera_tilt.degrees / 180", self.degrees / 180)

    def apply(self, target: Splits, seed: int) -> tuple[Splits, Receipt]:
        """Turn the images of the test part."""
        images = target.test.images
        share = 2 * torch.rand(len(images), generator=generator(seed, "camera_tilt")) - 1
        angles = share * math.radians(self.degrees)
        return _with_test_images(self, target, _turned(images, angles.to(images.device)), seed)


def _with_test_images(fault: Fault[Splits], target: Splits, images: Tensor, seed: int) -> tuple[Splits, Receipt]:
    # Averages lie inside the bounds but for rounding, which the splits would refuse.
    after = images.clamp(target.bounds.low, target.bounds.high)
    changed = target.with_parts(test=ImageSet(after, target.test.labels))
    return changed, receipt_of(fault, seed, [pixel_change("test", target.test.images, after)])


def gaussian_kernel(deviation: float) -> Tensor:
    """Weights (2 reach + 1,) float32 that sum to 1."""
    reach = max(1, math.ceil(_KERNEL_DEVIATIONS * deviation))
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (offsets / deviation) ** 2)
    return (weights / weights.sum()).float()


def blurred(images: Tensor, kernel: Tensor) -> Tensor:
    """Images (B, C, H, W) averaged with the kernel along both axes; the edge is repeated outside."""
    return torch.cat([_blurred_piece(piece, kernel) for piece in images.split(_PIECE)])


def _blurred_piece(images: Tensor, kernel: Tensor) -> Tensor:
    channels, reach = images.shape[1], len(kernel) // 2
    weights = kernel.expand(channels, 1, 1, -1)
    wide = F.pad(images, (reach, reach, 0, 0), mode="replicate")
    images = F.conv2d(wide, weights, groups=channels)
    tall = F.pad(images, (0, 0, reach, reach), mode="replicate")
    return F.conv2d(tall, weights.transpose(2, 3), groups=channels)


def _turned(images: Tensor, angles: Tensor) -> Tensor:
    """Images (B, C, H, W), each turned counter-clockwise by its angle (B,) in radians."""
    pieces = zip(images.split(_PIECE), angles.split(_PIECE), strict=True)
    return torch.cat([_turned_piece(*piece) for piece in pieces])


def _turned_piece(images: Tensor, angles: Tensor) -> Tensor:
    height, width = images.shape[2:]
    cos, sin = angles.cos(), angles.sin()
    zero = torch.zeros_like(angles)
    # The grid's axes both run from -1 to 1: the ratio of the sides keeps the turn from shearing.
    rows = [cos, -sin * (height / width), zero, sin * (width / height), cos, zero]
    grid = F.affine_grid(torch.stack(rows, dim=1).view(-1, 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
