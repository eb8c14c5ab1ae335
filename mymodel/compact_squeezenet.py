"""A small network of fire modules for CPUs."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from mymodel.family import Family
from mymodel.layers import convolution, initialise, pooled_features, prepared

__all__ = ["CompactSqueezeNet", "Fire"]

_FIRST_WIDTH = 32
# (squeeze, expand) of the fire modules between two poolings.
_STAGES = (((16, 32), (16, 32)), ((32, 64), (32, 64)), ((48, 96),))


@dataclass(frozen=True, slots=True)
class CompactSqueezeNet(Family):
    """Fire modules, each a squeeze to few channels and an expansion by 1x1 and 3x3 convolutions.

    After Iandola et al. (2016) with batch normalisation, for images of 8 to 64 px; the last layer is a 1x1
    convolution that is averaged over the image. Five fire modules, three in the shallow mutant; 0.11 M
    parameters and 5.3 M multiplications at 28 px.

    >>> CompactSqueezeNet(channels=1).build(10)[-1][-2]
    Conv2d(192, 10, kernel_size=(1, 1), stride=(1, 1))
    """

    name: ClassVar[str] = "compact_squeezenet"

    def build(self, classes: int) -> nn.Sequential:
        """A network from images (B, channels, H, W) in [0, 1] to logits (B, classes)."""
        width = _FIRST_WIDTH
        layers: list[nn.Module] = [convolution(self.channels, width, kernel=3), nn.MaxPool2d(2)]
        for stage, fires in enumerate(_STAGES):
            if stage > 0:
                layers.append(nn.MaxPool2d(2))
            for squeeze, expand in fires[:1] if self.shallow else fires:
                layers.append(Fire(width, squeeze, expand))
                width = 2 * expand
        layers += [nn.Conv2d(width, classes, kernel_size=1), pooled_features(1)]
        return prepared(initialise(nn.Sequential(*layers)), smallest=16)


class Fire(nn.Module):
    """A 1x1 convolution to few channels, then 1x1 and 3x3 convolutions side by side.

    Args:
        width: channels of the input.
        squeeze: channels between.
        expand: channels of each of the two results.
    """

    def __init__(self, width: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = convolution(width, squeeze, kernel=1)
        self.expand1 = convolution(squeeze, expand, kernel=1)
        self.expand3 = convolution(squeeze, expand, kernel=3)

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps (B, width, H, W) to (B, 2 * expand, H, W)."""
        squeezed = self.squeeze(x)
        return torch.cat([self.expand1(squeezed), self.expand3(squeezed)], dim=1)
