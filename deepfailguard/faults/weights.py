"""Faults in the weights of a trained model: flipped bits, noise, pruning, swapped layers.

What comes out is a copy; values that are not finite may arise from flipped exponents, as in memory,
and are left there for the guard to find.
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from deepfailguard.faults.amounts import (
    check_amount,
    check_choice,
    check_positive,
    draw_distinct,
    how_many,
    split_positions,
)
from deepfailguard.faults.base import ActsOn
from deepfailguard.faults.bits import BitField, field_bits, flip_bits
from deepfailguard.faults.receipts import receipt_of
from deepfailguard.faults.weight_tensors import choose_tensors, flat_values, overwrite, weight_changes
from deepfailguard.seeding import generator
from deepfailguard.types import Receipt

__all__ = ["BitFlips", "GaussianWeightNoise", "PrunedWeights", "PruningOrder"]

PruningOrder = Literal["magnitude", "random"]


@dataclass(frozen=True, slots=True)
class BitFlips:
    """Bits of the weights that flipped in memory, each bit of the chosen field equally likely.

    Attributes:
        bits: which field of the numbers: ``any``, ``sign``, ``exponent`` or ``mantissa``; float16,
            bfloat16, float32 and float64 each by their own layout.
        rate: share of these bits in (0, 1] that flip, rounded to a whole number of them.
        count: how many bits flip instead, all different.
        layers: pattern on the parameters' names.
        buffers: whether running statistics may be hit too.
    """

    bits: BitField = "any"
    rate: float = 1e-5
    count: int | None = None
    layers: str = "*"
    buffers: bool = False

    name: ClassVar[str] = "bit_flips"
    acts_on: ClassVar[ActsOn] = "weights"
    number: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        check_choice("bit_flips.bits", self.bits, BitField)
        check_amount("bit_flips", self.rate, self.count)

    def apply(self, target: nn.Module, seed: int) -> tuple[nn.Module, Receipt]:
        """Flip bits in a copy of the model."""
        changed = deepcopy(target)
        tensors = list(choose_tensors(changed, self.layers, self.buffers).values())
        fields = [field_bits(tensor.dtype, self.bits) for tensor in tensors]
        sizes = [tensor.numel() * len(field) for tensor, field in zip(tensors, fields, strict=True)]
        count = how_many(self.rate, self.count, sum(sizes), f"bits ({self.bits})")
        positions = draw_distinct(count, sum(sizes), generator(seed, "bit_flips"))
        for tensor, field, local in zip(tensors, fields, split_positions(positions, sizes), strict=True):
            elements, bits = local // len(field), local % len(field) + field.start
            overwrite(tensor, flip_bits(flat_values(tensor), elements, bits))
        return changed, receipt_of(self, seed, weight_changes(target, changed))


@dataclass(frozen=True, slots=True)
class GaussianWeightNoise:
    """Gaussian noise on weights, in proportion to the size of the weights around them.

    Attributes:
        sigma: standard deviation of the noise > 0, as a share of the root mean square of the tensor.
        rate: share of the weights in (0, 1] that get noise.
        count: how many weights instead.
        layers: pattern on the parameters' names.
        buffers: whether running statistics may be hit too (a variance may become negative by it).
    """

    sigma: float = 0.3
    rate: float = 1.0
    count: int | None = None
    layers: str = "*"
    buffers: bool = False

    name: ClassVar[str] = "gaussian_weight_noise"
    acts_on: ClassVar[ActsOn] = "weights"
    number: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        check_positive("gaussian_weight_noise.sigma", self.sigma)
        check_amount("gaussian_weight_noise", self.rate, self.count)

    def apply(self, target: nn.Module, seed: int) -> tuple[nn.Module, Receipt]:
        """Add noise in a copy of the model."""
        changed = deepcopy(target)
        tensors = list(choose_tensors(changed, self.layers, self.buffers).values())
        sizes = [tensor.numel() for tensor in tensors]
        rng = generator(seed, "gaussian_weight_noise")
        positions = draw_distinct(how_many(self.rate, self.count, sum(sizes), "weights"), sum(sizes), rng)
        for tensor, local in zip(tensors, split_positions(positions, sizes), strict=True):
            values = flat_values(tensor)
            # Half precision is too coarse for a mean of squares; double is more than some devices have.
            wide = values.to(torch.promote_types(values.dtype, torch.float32))
            noise = torch.randn(len(local), generator=rng).to(wide)
            where = local.to(values.device)
            wide[where] += self.sigma * wide.square().mean().sqrt() * noise
            values[where] = wide[where].to(values.dtype)
            overwrite(tensor, values)
        return changed, receipt_of(self, seed, weight_changes(target, changed))


@dataclass(frozen=True, slots=True)
class PrunedWeights:
    """Weights set to zero, as by a compression that went too far.

    Attributes:
        order: ``magnitude``: the smallest absolute values of all chosen tensors together; ``random``.
        rate: share of the weights in (0, 1] that are zero afterwards at least (those that were zero
            before do not count as changed).
        count: how many weights instead.
        layers: pattern on the parameters' names.
    """

    order: PruningOrder = "magnitude"
    rate: float = 0.7
    count: int | None = None
    layers: str = "*weight"

    name: ClassVar[str] = "pruned_weights"
    acts_on: ClassVar[ActsOn] = "weights"
    number: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        check_choice("pruned_weights.order", self.order, PruningOrder)
        check_amount("pruned_weights", self.rate, self.count)

    def apply(self, target: nn.Module, seed: int) -> tuple[nn.Module, Receipt]:
        """Set weights to zero in a copy of the model."""
        changed = deepcopy(target)
        tensors = list(choose_tensors(changed, self.layers).values())
        sizes = [tensor.numel() for tensor in tensors]
        count = how_many(self.rate, self.count, sum(sizes), "weights")
        for tensor, local in zip(tensors, split_positions(self._draw(tensors, count, seed), sizes), strict=True):
            values = flat_values(tensor)
            values[local.to(values.device)] = 0
            overwrite(tensor, values)
        return changed, receipt_of(self, seed, weight_changes(target, changed))

    def _draw(self, tensors: list[Tensor], count: int, seed: int) -> Tensor:
        if self.order == "random":
            return draw_distinct(count, sum(map(Tensor.numel, tensors)), generator(seed, "pruned_weights"))
        magnitudes = torch.cat([flat_values(tensor).cpu().double().abs() for tensor in tensors])
        # Stable: among equal magnitudes the first are taken, on every machine.
        return magnitudes.argsort(stable=True)[:count]
