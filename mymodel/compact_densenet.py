"""A small densely connected network for CPUs."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from mymodel.family import Family
from mymodel.layers import convolution, initialise, pooled_features, prepared

__all__ = ["CompactDenseNet", "DenseLayer"]

_FIRST_WIDTH = 16
_GROWTH = 12
_BLOCKS = (3, 4, 4)
_SHALLOW_BLOCKS = (2, 2, 2)


@dataclass(frozen=True, slots=True)
class CompactDenseNet(Family):
    """Every layer sees the results of all layers before it in its block (Huang et al., 2017), for 8 to 64 px.

    Three blocks of 3, 4 and 4 layers, 2 each in the shallow mutant, with halving transitions
    between; 0.06 M parameters and 3.4 M multiplications at 28 px.

    >>> CompactDenseNet(channels=1).build(10)[-1][0][0]
    Conv2d(1, 16, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)
    """

    name: ClassVar[str] = "compact_densenet"

    def build(self, classes: int) -> nn.Sequential:
        """A network from images (B, channels, H, W) in [0, 1] to logits (B, classes)."""
        width = _FIRST_WIDTH
        layers: list[nn.Module] = [convolution(self.channels, width, kernel=3), nn.MaxPool2d(2)]
        for number, depth in enumerate(_SHALLOW_BLOCKS if self.shallow else _BLOCKS):
            if number > 0:
                layers.append(_transition(width, width // 2))
                width //= 2
            for _ in range(depth):
                layers.append(DenseLayer(width))
                width += _GROWTH
        layers += [nn.BatchNorm2d(width), nn.ReLU(), pooled_features(1), nn.Linear(width, classes)]
        return prepared(initialise(nn.Sequential(*layers)), smallest=16)


class DenseLayer(nn.Module):
    """Appends new channels to its input.

    Args:
        width: channels of the input.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        convolution = nn.Conv2d(width, _GROWTH, kernel_size=3, padding=1, bias=False)
        self.body = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), convolution)

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps (B, width, H, W) to (B, width + growth, H, W)."""
        return torch.cat([x, self.body(x)], dim=1)


def _transition(width: int, narrower: int) -> nn.Sequential:
    projection = nn.Conv2d(width, narrower, kernel_size=1, bias=False)
    return nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), projection, nn.AvgPool2d(2))
