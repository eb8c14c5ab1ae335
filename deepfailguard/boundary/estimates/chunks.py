"""The loop that all estimates share: checked inputs, chunk by chunk, where the model is."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from deepfailguard.boundary.searching import check_inputs
from deepfailguard.types import Bounds, Distances
from deepfailguard.versions.version import device_of

__all__ = ["in_chunks"]


def in_chunks(
    model: nn.Module, x: Tensor, bounds: Bounds, batch_size: int, estimate: Callable[[Tensor], Distances]
) -> Distances:
    """Estimate for inputs on any device; the model runs where its weights are.

    Args:
        model: only asked where it is.
        x: (B, ...), B >= 0.
        bounds: the range that every value must lie in.
        batch_size: inputs at once.
        estimate: gets a copy of each chunk on the model's device, since a model may work in place.

    Raises:
        DataFormatError: an input is not finite or not in the bounds.
    """
    check_inputs(x, bounds)
    device, nothing = device_of(model), torch.zeros(0)
    parts = [Distances(nothing.long(), nothing, nothing.bool())]
    for chunk in x.detach().split(batch_size) if len(x) else ():
        parts.append(estimate(chunk.to(device, copy=True)))
    return Distances.concatenate(parts)
