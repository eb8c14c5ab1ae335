import struct

import pytest
import torch

from deepfailguard.errors import FaultNotApplicableError
from deepfailguard.faults.bits import BitField, field_bits, flip_bits


def flip_one(value: float, bit: int, dtype: torch.dtype = torch.float32) -> float:
    return flip_bits(torch.tensor([value], dtype=dtype), torch.tensor([0]), torch.tensor([bit])).item()


@pytest.mark.parametrize("bit", range(32))
def test_flips_equal_those_of_the_standard_library(bit: int) -> None:
    integer = struct.unpack("<I", struct.pack("<f", 0.7))[0] ^ (1 << bit)
    assert flip_one(0.7, bit) == struct.unpack("<f", struct.pack("<I", integer))[0]


@pytest.mark.parametrize("bit", range(16))
def test_half_precision_flips_equal_those_of_the_standard_library(bit: int) -> None:
    integer = struct.unpack("<H", struct.pack("<e", 0.7))[0] ^ (1 << bit)
    assert flip_one(0.7, bit, torch.float16) == struct.unpack("<e", struct.pack("<H", integer))[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_known_flips_of_one(dtype: torch.dtype) -> None:
    sign, mantissa, exponent = (field_bits(dtype, field) for field in ("sign", "mantissa", "exponent"))
    assert flip_one(1.0, sign[0], dtype) == -1.0
    # The highest bit of the mantissa stands for a half, the lowest of the exponent halves an odd one.
    assert flip_one(1.0, mantissa[-1], dtype) == 1.5
    assert flip_one(1.0, exponent[0], dtype) == 0.5
    # One has every bit of the exponent set but the highest; with that it is infinite.
    assert flip_one(1.0, exponent[-1], dtype) == float("inf")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_fields_are_all_the_bits_once(dtype: torch.dtype) -> None:
    parts: list[BitField] = ["mantissa", "exponent", "sign"]
    bits = [bit for field in parts for bit in field_bits(dtype, field)]
    assert bits == list(field_bits(dtype, "any"))
    assert len(bits) == dtype.itemsize * 8
    # The smallest step above one is 2 ** -(bits of the mantissa).
    assert torch.finfo(dtype).eps == 2.0 ** -len(field_bits(dtype, "mantissa"))


def test_several_bits_of_one_element_flip_together() -> None:
    values = torch.tensor([1.0, 1.0])
    flipped = flip_bits(values, torch.tensor([1, 1, 1]), torch.tensor([31, 22, 23]))
    assert flipped.tolist() == [1.0, -0.75]
    assert values.tolist() == [1.0, 1.0]


def test_no_flip_is_a_copy() -> None:
    values = torch.tensor([1.0, 2.0])
    none = torch.empty(0, dtype=torch.int64)
    flipped = flip_bits(values, none, none)
    assert flipped.tolist() == [1.0, 2.0]
    assert flipped.data_ptr() != values.data_ptr()


def test_other_formats_are_refused() -> None:
    with pytest.raises(FaultNotApplicableError, match=r"float16, bfloat16, float32, float64, got torch\.complex64"):
        field_bits(torch.complex64, "sign")
