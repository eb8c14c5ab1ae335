"""A small plain network with wide kernels for CPUs."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from mymodel.family import Family
from mymodel.layers import convolution, initialise, pooled_features, prepared

__all__ = ["CompactAlexNet"]


@dataclass(frozen=True, slots=True)
class CompactAlexNet(Family):
    """Wide kernels first, overlapping max pooling, a hidden linear layer with dropout.

    After Krizhevsky et al. (2012), with batch normalisation in place of their local one, for images of 8 to
    64 px. Four convolutions, two in the shallow mutant; 0.13 M parameters and 5.6 M multiplications at 28 px.

    >>> CompactAlexNet(channels=1).build(10)[-1][0][0]
    Conv2d(1, 16, kernel_size=(5, 5), stride=(1, 1), padding=(2, 2), bias=False)
    """

    name: ClassVar[str] = "compact_alexnet"

    def build(self, classes: int) -> nn.Sequential:
        """A network from images (B, channels, H, W) in [0, 1] to logits (B, classes)."""
        layers: list[nn.Module] = [convolution(self.channels, 16, kernel=5), _overlapping_pool()]
        layers += [convolution(16, 32, kernel=5), _overlapping_pool()]
        width = 32
        if not self.shallow:
            layers += [convolution(32, 64, kernel=3), convolution(64, 64, kernel=3)]
            width = 64
        layers += [_overlapping_pool(), pooled_features(3), nn.Dropout(0.2)]
        layers += [nn.Linear(width * 9, 96), nn.ReLU(), nn.Linear(96, classes)]
        return prepared(initialise(nn.Sequential(*layers)), smallest=16)


def _overlapping_pool() -> nn.MaxPool2d:
    return nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
