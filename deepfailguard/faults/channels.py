"""Faults in whole output channels of layers: stuck at a value, dead, or scaled.

All three replace a channel's output y by ``scale y + shift``, which is done in the channel's weights
and bias; so it holds for whatever the layer is asked.
"""

from copy import deepcopy
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import isfinite
from typing import ClassVar

import torch
from torch import Tensor, nn

from deepfailguard.errors import ConfigurationError, FaultNotApplicableError
from deepfailguard.faults.amounts import check_amount, draw_distinct, how_many, split_positions
from deepfailguard.faults.base import ActsOn
from deepfailguard.faults.receipts import receipt_of
from deepfailguard.faults.weight_tensors import weight_changes
from deepfailguard.seeding import generator
from deepfailguard.types import Receipt

__all__ = ["ScaledChannels", "StuckChannels", "ZeroedChannels"]

# Layers whose first weight dimension is their output channel and whose output is affine in weight and bias.
_LAYERS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm),
)


@dataclass(frozen=True, slots=True)
class StuckChannels:
    """Output channels that always give the same value.

    Only layers with a bias can do that without a new parameter; where a convolution has none, the
    batch norm behind it has.

    Attributes:
        value: the finite value.
        rate: share of the channels in (0, 1].
        count: how many channels instead.
        layers: pattern on the names of the layers' weights.
    """

    value: float = 5.0
    rate: float = 0.02
    count: int | None = None
    layers: str = "*"

    name: ClassVar[str] = "stuck_channels"
    acts_on: ClassVar[ActsOn] = "weights"
    number: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        _check_finite("stuck_channels.value", self.value)
        check_amount("stuck_channels", self.rate, self.count)

    def apply(self, target: nn.Module, seed: int) -> tuple[nn.Module, Receipt]:
        """Fix channels in a copy of the model."""
        changed = deepcopy(target)
        layers = _channel_layers(changed, self.layers, with_bias=True)
        _change_channels(layers, _draw(layers, self.rate, self.count, seed), scale=0, shift=self.value)
        return changed, receipt_of(self, seed, weight_changes(target, changed))


@dataclass(frozen=True, slots=True)
class ZeroedChannels:
    """Output channels that are dead: always zero.

    Attributes:
        rate: share of the channels in (0, 1].
        count: how many channels instead.
        layers: pattern on the names of the layers' weights.
    """

    rate: float = 0.1
    count: int | None = None
    layers: str = "*"

    name: ClassVar[str] = "zeroed_channels"
    acts_on: ClassVar[ActsOn] = "weights"
    number: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        check_amount("zeroed_channels", self.rate, self.count)

    def apply(self, target: nn.Module, seed: int) -> tuple[nn.Module, Receipt]:
        """Kill channels in a copy of the model."""
        changed = deepcopy(target)
        layers = _channel_layers(changed, self.layers)
        _change_channels(layers, _draw(layers, self.rate, self.count, seed), scale=0, shift=0)
        return changed, receipt_of(self, seed, weight_changes(target, changed))


@dataclass(frozen=True, slots=True)
class ScaledChannels:
    """Output channels that are too loud or too quiet by a factor.

    Attributes:
        factor: the finite factor.
        rate: share of the channels in (0, 1].
        count: how many channels instead.
        layers: pattern on the names of the layers' weights.
    """

    factor: float = 3.0
    rate: float = 0.1
    count: int | None = None
    layers: str = "*"

    name: ClassVar[str] = "scaled_channels"
    acts_on: ClassVar[ActsOn] = "weights"
    number: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        _check_finite("scaled_channels.factor", self.factor)
        check_amount("scaled_channels", self.rate, self.count)

    def apply(self, target: nn.Module, seed: int) -> tuple[nn.Module, Receipt]:
        """Scale channels in a copy of the model."""
        changed = deepcopy(target)
        layers = _channel_layers(changed, self.layers)
        _change_channels(layers, _draw(layers, self.rate, self.count, seed), scale=self.factor, shift=0)
        return changed, receipt_of(self, seed, weight_changes(target, changed))


def _check_finite(setting: str, value: float) -> None:
    if not isfinite(value):
        raise ConfigurationError(f"{setting} must be finite, got {value}")


def _channel_layers(model: nn.Module, pattern: str, with_bias: bool = False) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for name, module in model.named_modules():
        wanted = fnmatchcase(f"{name}.weight".lstrip("."), pattern)
        needed = ("weight", "bias") if with_bias else ("weight",)
        if wanted and isinstance(module, _LAYERS) and all(isinstance(getattr(module, n), Tensor) for n in needed):
            layers.append(module)
    if not layers:
        kind = "convolution, linear or norm layer" + (" with a bias" if with_bias else "")
        raise FaultNotApplicableError(f"no {kind} has a weight whose name fits layers={pattern!r}; widen the pattern")
    return layers


def _draw(layers: list[nn.Module], rate: float, count: int | None, seed: int) -> list[Tensor]:
    """Different channels of the layers, every channel equally likely: per layer int64 (some,)."""
    sizes = [_parameter(layer, "weight").shape[0] for layer in layers]
    channels = how_many(rate, count, sum(sizes), "channels")
    return split_positions(draw_distinct(channels, sum(sizes), generator(seed, "channels")), sizes)


@torch.no_grad()
def _change_channels(layers: list[nn.Module], channels: list[Tensor], scale: float, shift: float) -> None:
    for layer, index in zip(layers, channels, strict=True):
        weight = _parameter(layer, "weight")
        where = index.to(weight.device)
        # Zeros are written, not multiplied: an infinite weight, left by another fault, would become NaN.
        weight[where] = weight[where] * scale if scale else torch.zeros_like(weight[where])
        if isinstance(layer.bias, Tensor):
            bias = layer.bias
            bias[where] = (bias[where] * scale if scale else torch.zeros_like(bias[where])) + shift


def _parameter(layer: nn.Module, name: str) -> Tensor:
    value = getattr(layer, name)
    assert isinstance(value, Tensor)
    return value
