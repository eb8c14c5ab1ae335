"""Random bits of live weights."""

import random
from collections.abc import Callable

import torch
from torch import Tensor, nn

from deepfailguard.faults.bits import field_bits, flip_bits

__all__ = ["flip_random_bits", "tensors_of"]


def tensors_of(model: nn.Module) -> list[Tensor]:
    """The floating point parameters and buffers."""
    return [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()]


def flip_random_bits(model: nn.Module, bits: int, draw: random.Random) -> Callable[[], None]:
    """Flip different bits of a random tensor, in place; what is returned takes that back.

    Args:
        model: is changed.
        bits: how many.
        draw: makes the choices.
    """
    tensor = draw.choice(tensors_of(model)).detach()
    width = len(field_bits(tensor.dtype, "any"))
    places = torch.tensor(draw.sample(range(tensor.numel() * width), bits))
    touched, elements = (places // width).unique(return_inverse=True)
    flat = tensor.view(-1)
    old = flat[touched]
    flat[touched] = flip_bits(old, elements, places % width)

    def restore() -> None:
        flat[touched] = old

    return restore
