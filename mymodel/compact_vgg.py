"""A small network of stacked 3x3 convolutions for CPUs."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from mymodel.family import Family
from mymodel.layers import convolution, initialise, pooled_features, prepared

__all__ = ["CompactVGG"]

# Widths of the convolutions between two poolings.
_STAGES = ((16,), (32, 32), (64, 64))
_SHALLOW_STAGES = ((16,), (32,), (64,))


@dataclass(frozen=True, slots=True)
class CompactVGG(Family):
    """Stacked 3x3 convolutions with pooling between the stages, a hidden linear layer with dropout.

    After Simonyan & Zisserman (2015) with batch normalisation, for images of 8 to 64 px. Five convolutions,
    three in the shallow mutant; 0.13 M parameters and 5.6 M multiplications at 28 px.

    >>> CompactVGG(channels=1).build(10)[-1][0][0]
    Conv2d(1, 16, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)
    """

    name: ClassVar[str] = "compact_vgg"

    def build(self, classes: int) -> nn.Sequential:
        """A network from images (B, channels, H, W) in [0, 1] to logits (B, classes)."""
        layers: list[nn.Module] = []
        width = self.channels
        for stage in _SHALLOW_STAGES if self.shallow else _STAGES:
            for wider in stage:
                layers.append(convolution(width, wider, kernel=3))
                width = wider
            layers.append(nn.MaxPool2d(2))
        layers += [pooled_features(3), nn.Dropout(0.2), nn.Linear(width * 9, 96), nn.ReLU(), nn.Linear(96, classes)]
        return prepared(initialise(nn.Sequential(*layers)), smallest=16)
