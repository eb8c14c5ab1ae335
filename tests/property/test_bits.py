"""Flipping bits, on any values of any format: how many change, which, and back again."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from deepfailguard.faults.bits import BitField, field_bits, flip_bits
from deepfailguard.faults.weights import BitFlips

INTEGERS = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}
FIELDS: list[BitField] = ["any", "sign", "exponent", "mantissa"]


@st.composite
def values_and_flips(draw: st.DrawFn) -> tuple[Tensor, list[tuple[int, int]], BitField]:
    """Numbers of any bit pattern (NaN and infinities too) and different bits of one field of them."""
    dtype = draw(st.sampled_from(list(INTEGERS)))
    field = draw(st.sampled_from(FIELDS))
    width = dtype.itemsize * 8
    patterns = draw(st.lists(st.integers(-(1 << (width - 1)), (1 << (width - 1)) - 1), min_size=1, max_size=6))
    bits = field_bits(dtype, field)
    places = st.tuples(st.integers(0, len(patterns) - 1), st.sampled_from(bits))
    flips = draw(st.lists(places, unique=True, max_size=20))
    return torch.tensor(patterns, dtype=INTEGERS[dtype]).view(dtype), flips, field


def flip(values: Tensor, flips: list[tuple[int, int]]) -> Tensor:
    places = torch.tensor(flips, dtype=torch.int64).view(-1, 2)
    return flip_bits(values, places[:, 0], places[:, 1])


def differing(before: Tensor, after: Tensor) -> list[tuple[int, int]]:
    """Element and bit of every difference, by integer arithmetic of Python."""
    width = before.dtype.itemsize * 8
    pairs = zip(before.view(INTEGERS[before.dtype]).tolist(), after.view(INTEGERS[after.dtype]).tolist(), strict=True)
    return [(i, bit) for i, (a, b) in enumerate(pairs) for bit in range(width) if (a ^ b) >> bit & 1]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(values_and_flips())
def test_exactly_the_given_bits_differ(case: tuple[Tensor, list[tuple[int, int]], BitField]) -> None:
    values, flips, _ = case
    assert differing(values, flip(values, flips)) == sorted(flips)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(values_and_flips())
def test_flipping_twice_restores_every_bit(case: tuple[Tensor, list[tuple[int, int]], BitField]) -> None:
    values, flips, _ = case
    assert differing(values, flip(flip(values, flips), flips)) == []


@settings(max_examples=150, deadline=None, derandomize=True)
@given(values_and_flips())
def test_other_fields_keep_their_value(case: tuple[Tensor, list[tuple[int, int]], BitField]) -> None:
    values, flips, field = case
    before, after = values.double(), flip(values, flips).double()
    finite = before.isfinite() & after.isfinite()
    if field == "sign":
        assert torch.equal(before[finite].abs(), after[finite].abs())
    if field in ("mantissa", "exponent"):
        assert torch.equal(before.signbit(), after.signbit())
    if field == "mantissa":
        # The power of two below a normal number stands in its exponent alone.
        normal = finite & (before.abs() >= torch.finfo(values.dtype).smallest_normal)
        assert torch.equal(before[normal].frexp().exponent, after[normal].frexp().exponent)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
    field=st.sampled_from(FIELDS),
    count=st.integers(1, 35),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_fault_flips_its_count_of_its_field(dtype: torch.dtype, field: BitField, count: int, seed: int) -> None:
    # No value is zero, whose sign may flip without a change of value.
    torch.manual_seed(1)
    layer = nn.Linear(5, 6).to(dtype)
    changed, receipt = BitFlips(bits=field, count=count).apply(layer, seed)
    flips = [
        place
        for old, new in zip(layer.parameters(), changed.parameters(), strict=True)
        for place in differing(old.detach().flatten(), new.detach().flatten())
    ]
    assert len(flips) == count
    assert {bit for _, bit in flips} <= set(field_bits(dtype, field))
    assert 1 <= sum(change.count for change in receipt.changes) <= count
