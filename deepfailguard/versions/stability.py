"""Does a model keep its answer when an image is changed so little that its class stays what it is?"""

from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deepfailguard.types import NO_ANSWER, Bounds
from deepfailguard.versions.logits import as_logits
from deepfailguard.versions.version import device_of, evened, run

__all__ = ["CHANGES", "stability"]

_WHOLE_PIXEL: Final = 32  # pixels of a side from which on images are changed by a whole pixel, smaller ones by less
_LIGHT: Final = 0.1
_BATCH: Final = 256


@torch.no_grad()
def stability(model: nn.Module, images: Tensor, labels: Tensor, bounds: Bounds, batch: int = _BATCH) -> Tensor:
    """The mean probability of an answer over the copies of its image by `CHANGES`: (B,) float32 in [0, 1] on the CPU.

    It is 0 where there is no answer. A copy for which a logit is not finite counts as probability 0. It costs one
    forward pass for each change, all in evaluation mode; the model is left as it was.

    Args:
        model: from images to logits (B, K).
        images: (B, C, H, W) on any device, finite and in the bounds; B may be 0.
        labels: (B,) int64 in [-1, K), the model's answers to the unchanged images; -1 for none.
        bounds: which the copies keep.
        batch: so many images go through the model at once.

    Raises:
        WrongOutputError: the model returned something else than logits.

    Example:
        >>> pixels = nn.Flatten()  # a model whose logits are the pixels
        >>> image = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1)
        >>> round(float(stability(pixels, image, torch.tensor([1]), Bounds(0.0, 1.0))), 3)
        0.726
    """
    if len(images) == 0:
        return torch.zeros(0)
    pieces = zip(images.split(batch), labels.split(batch), strict=True)
    return torch.cat([_mean_probability(model, *piece, bounds) for piece in pieces])


def _mean_probability(model: nn.Module, images: Tensor, labels: Tensor, bounds: Bounds) -> Tensor:
    given = evened(images.to(device_of(model)))
    copies = [_probability(run(model, change(given, bounds)), len(given), labels) for change in CHANGES.values()]
    return torch.stack(copies).mean(0).float()


def _probability(output: object, asked: int, labels: Tensor) -> Tensor:
    """Softmax (B,) float64 of the labels; 0 where there is none, and where a logit is not finite."""
    logits = as_logits(output, asked)[: len(labels)].cpu().double()  # in this order: not every device has float64
    labels = labels.cpu()
    told = logits.softmax(1).gather(1, labels.clamp_min(0)[:, None]).squeeze(1)
    return torch.where(logits.isfinite().all(1) & (labels != NO_ANSWER), told, 0.0)


def _right(images: Tensor, bounds: Bounds) -> Tensor:
    moved = torch.cat([images[..., :1], images[..., :-1]], 3)
    return _towards(images, moved, bounds)


def _down(images: Tensor, bounds: Bounds) -> Tensor:
    moved = torch.cat([images[:, :, :1], images[:, :, :-1]], 2)
    return _towards(images, moved, bounds)


def _softer(images: Tensor, bounds: Bounds) -> Tensor:
    wide = F.pad(images, (1, 1, 1, 1), mode="replicate")
    return _towards(images, F.avg_pool2d(wide, 3, stride=1), bounds)


def _brighter(images: Tensor, bounds: Bounds) -> Tensor:
    return _inside(images + _LIGHT * (bounds.high - images), bounds)


def _towards(images: Tensor, other: Tensor, bounds: Bounds) -> Tensor:
    """All of the way for images of 32 pixels or more; for smaller ones, in which a pixel is more, a part of it."""
    share = min(1.0, min(images.shape[2:]) / _WHOLE_PIXEL)
    return _inside(torch.lerp(images, other, share), bounds)


def _inside(images: Tensor, bounds: Bounds) -> Tensor:
    """Means lie inside the bounds but for rounding."""
    return images.clamp(bounds.low, bounds.high)


CHANGES: Final[Mapping[str, Callable[[Tensor, Bounds], Tensor]]] = {
    "right": _right,
    "down": _down,
    "softer": _softer,
    "brighter": _brighter,
}
"""Changes of images (B, C, H, W) within bounds that leave a class what it is, of digits as of photos: moved by a pixel
to the right or down (the edge is repeated), averaged over 3 x 3 pixels, each to a part only in images of less than 32
pixels a side, and a tenth nearer to the upper bound. No image depends on another, and none is changed in place. An
image of a single pixel is only made brighter."""
