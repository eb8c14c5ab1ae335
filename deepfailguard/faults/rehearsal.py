"""Rehearsal: calibration inputs changed in many ways and degrees, so that a predictor has seen versions fail before.

Each kind of change is drawn with a degree of its own for every image, from hardly visible to severe. They are
no forecast of what will happen in service. What is learned from them must hold for changes that are not among them.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from deepfailguard.errors import ConfigurationError
from deepfailguard.faults.image_shifts import blurred, gaussian_kernel
from deepfailguard.seeding import generator
from deepfailguard.types import Bounds

__all__ = ["KINDS", "Changed", "Kind", "Rehearsal"]

Kind = Literal["noise", "blur", "light", "tilt", "shift", "zoom", "occlusion", "gamma", "brightness"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

_NOISE: Final = (0.02, 0.35)  # deviations, as shares of the bounds' width
_BLUR: Final = (0.015, 0.03, 0.045, 0.06)  # radii, as shares of the image's height
_CONTRAST, _DARK = (0.3, 1.0), (0.4, 1.0)
_DEGREES, _SHIFT, _ZOOM = 35.0, 0.35, (0.7, 1.4)  # the shift is in half images
_HIDDEN: Final = (0.15, 0.45)  # side of the hidden square, as a share of the image's
_GAMMA, _BRIGHTNESS = 1.0, (-0.3, 0.4)


@dataclass(frozen=True, slots=True)
class Changed:
    """Images changed in one way.

    Attributes:
        kind: how.
        images: (R, C, H, W) inside the bounds.
        source: (R,) int64, the image that each was made from.
    """

    kind: Kind
    images: Tensor
    source: Tensor


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """Which changes are rehearsed.

    Attributes:
        inputs: images per kind at most (>= 1), drawn anew for each kind.
        kinds: of changes, each at most once.

    Example:
        >>> rehearsal = Rehearsal(inputs=2, kinds=("noise", "blur"))
        >>> for changed in rehearsal.apply(torch.rand(5, 1, 8, 8), Bounds(), seed=0):
        ...     print(changed.kind, tuple(changed.images.shape))
        noise (2, 1, 8, 8)
        blur (2, 1, 8, 8)
    """

    inputs: int = 400
    kinds: tuple[Kind, ...] = KINDS

    def __post_init__(self) -> None:
        if self.inputs < 1:
            raise ConfigurationError(f"a rehearsal needs at least one input per kind, got inputs={self.inputs}")
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or len(set(self.kinds)) != len(self.kinds):
            raise ConfigurationError(f"kinds must be some of {', '.join(KINDS)}, each once, got {self.kinds}")

    def apply(self, images: Tensor, bounds: Bounds, seed: int) -> Iterator[Changed]:
        """Changed images, a record for each kind, made when its turn comes; the given ones stay as they are.

        Args:
            images: (B, C, H, W) floating point inside the bounds.
            bounds: of the values.
            seed: same seed, same images.
        """
        for kind in self.kinds:
            random = generator(seed, "rehearsal", kind)
            source = torch.randperm(len(images), generator=random)[: self.inputs]
            unit = (images[source.to(images.device)] - bounds.low) / bounds.width
            after = _CHANGES[kind](unit, random).clamp(0, 1) * bounds.width + bounds.low
            # Rounding may leave the bounds by one unit in the last place.
            yield Changed(kind, after.clamp(bounds.low, bounds.high), source)


def _draw(images: Tensor, span: tuple[float, float], random: torch.Generator) -> Tensor:
    """One number for each image, (B, 1, 1, 1)."""
    low, high = span
    numbers = low + (high - low) * torch.rand(len(images), generator=random)
    return numbers.to(images)[:, None, None, None]


def _noise(images: Tensor, random: torch.Generator) -> Tensor:
    noise = torch.randn(images.shape, generator=random).to(images)
    return images + _draw(images, _NOISE, random) * noise


def _blur(images: Tensor, random: torch.Generator) -> Tensor:
    radius = torch.randint(len(_BLUR), (len(images),), generator=random).to(images.device)
    after = images.clone()
    for number, share in enumerate(_BLUR):
        chosen = (radius == number).nonzero().squeeze(1)
        if len(chosen):
            kernel = gaussian_kernel(share * images.shape[2]).to(images)
            after[chosen] = blurred(images[chosen], kernel)
    return after


def _light(images: Tensor, random: torch.Generator) -> Tensor:
    mean = images.mean((1, 2, 3), keepdim=True)
    flat = mean + _draw(images, _CONTRAST, random) * (images - mean)
    return flat * _draw(images, _DARK, random)


def _tilt(images: Tensor, random: torch.Generator) -> Tensor:
    angle = _draw(images, (-_DEGREES, _DEGREES), random).flatten() * math.pi / 180
    return _moved(images, angle=angle)


def _shift(images: Tensor, random: torch.Generator) -> Tensor:
    across, down = (_draw(images, (-_SHIFT, _SHIFT), random).flatten() for _ in range(2))
    return _moved(images, across=across, down=down)


def _zoom(images: Tensor, random: torch.Generator) -> Tensor:
    return _moved(images, scale=_draw(images, _ZOOM, random).flatten())


def _occlusion(images: Tensor, random: torch.Generator) -> Tensor:
    height, width = images.shape[2:]
    side = _draw(images, _HIDDEN, random)
    rows = torch.arange(height).to(images)[None, None, :, None] / height
    columns = torch.arange(width).to(images)[None, None, None, :] / width
    top, left = (_draw(images, (0.0, 1.0), random) * (1 - side) for _ in range(2))
    hidden = (rows >= top) & (rows < top + side) & (columns >= left) & (columns < left + side)
    return torch.where(hidden, _draw(images, (0.0, 1.0), random), images)


def _gamma(images: Tensor, random: torch.Generator) -> Tensor:
    return images.clamp(0, 1) ** _draw(images, (-_GAMMA, _GAMMA), random).exp()


def _brightness(images: Tensor, random: torch.Generator) -> Tensor:
    return images + _draw(images, _BRIGHTNESS, random)


def _moved(
    images: Tensor,
    scale: Tensor | None = None,
    angle: Tensor | None = None,
    across: Tensor | None = None,
    down: Tensor | None = None,
) -> Tensor:
    """Images turned, zoomed and shifted, each by its own numbers (B,); beyond the edge the edge is repeated."""
    height, width = images.shape[2:]
    zero = torch.zeros(len(images), device=images.device, dtype=images.dtype)
    scale = zero + 1 if scale is None else scale
    angle, across, down = (zero if each is None else each for each in (angle, across, down))
    cos, sin = angle.cos() / scale, angle.sin() / scale
    # The grid's axes both run from -1 to 1: the ratio of the sides keeps a turn from shearing.
    rows = [cos, -sin * (height / width), across, sin * (width / height), cos, down]
    grid = F.affine_grid(torch.stack(rows, dim=1).view(-1, 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


_CHANGES: Final[dict[Kind, Callable[[Tensor, torch.Generator], Tensor]]] = {
    "noise": _noise,
    "blur": _blur,
    "light": _light,
    "tilt": _tilt,
    "shift": _shift,
    "zoom": _zoom,
    "occlusion": _occlusion,
    "gamma": _gamma,
    "brightness": _brightness,
}
