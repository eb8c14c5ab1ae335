"""Bits of floating-point numbers (IEEE 754 and bfloat16): which they are, and flipping them."""

from typing import Literal

import torch
from torch import Tensor

from deepfailguard.errors import FaultNotApplicableError

__all__ = ["BitField", "field_bits", "flip_bits"]

BitField = Literal["any", "sign", "exponent", "mantissa"]

# Bits of the mantissa and of all, and the integers of the same width.
_FORMATS: dict[torch.dtype, tuple[int, int, torch.dtype]] = {
    torch.float16: (10, 16, torch.int16),
    torch.bfloat16: (7, 16, torch.int16),
    torch.float32: (23, 32, torch.int32),
    torch.float64: (52, 64, torch.int64),
}


def field_bits(dtype: torch.dtype, field: BitField) -> range:
    """Numbers of a field's bits; bit 0 is the lowest of the mantissa.

    >>> field_bits(torch.float32, "exponent"), field_bits(torch.bfloat16, "sign")
    (range(23, 31), range(15, 16))

    Raises:
        FaultNotApplicableError: a dtype whose bits are not known here.
    """
    mantissa, width, _ = _format(dtype)
    fields: dict[BitField, range] = {
        "any": range(width),
        "sign": range(width - 1, width),
        "exponent": range(mantissa, width - 1),
        "mantissa": range(mantissa),
    }
    return fields[field]


def flip_bits(values: Tensor, elements: Tensor, bits: Tensor) -> Tensor:
    """A copy in which the given bits are flipped; flipping the same ones again restores it.

    Args:
        values: (E,) of a floating dtype.
        elements: (P,) int64 in [0, E), the element of each flip.
        bits: (P,) int64, the bit of each flip; the pairs of element and bit differ from each other.

    Returns:
        (E,) of the dtype of `values`. It may hold values that are not finite.

    Example:
        >>> flip_bits(torch.tensor([1.0, 2.0]), torch.tensor([1]), torch.tensor([31]))
        tensor([ 1., -2.])
    """
    _, width, integer = _format(values.dtype)
    # The top bit of a signed integer is its smallest value: 2 ** (width - 1) would not fit.
    powers = [1 << bit for bit in range(width - 1)] + [-(1 << (width - 1))]
    masks = torch.tensor(powers, dtype=integer)[bits.cpu()].to(values.device)
    # Several bits of one element: their masks differ, so that the sum of them is one mask for all.
    hit, place = elements.to(values.device).unique(return_inverse=True)
    flips = torch.zeros(len(hit), dtype=integer, device=values.device).index_add_(0, place, masks)
    flipped = values.detach().clone()
    integers = flipped.view(integer)
    integers[hit] = integers[hit] ^ flips
    return flipped


def _format(dtype: torch.dtype) -> tuple[int, int, torch.dtype]:
    if dtype not in _FORMATS:
        known = ", ".join(str(known).removeprefix("torch.") for known in _FORMATS)
        raise FaultNotApplicableError(f"bits can be flipped in {known}, got {dtype}; choose other layers")
    return _FORMATS[dtype]
