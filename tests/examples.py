"""Small data and networks that several tests use."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deepfailguard.data.base import ImageSet, Splits
from deepfailguard.data.splitting import train_and_calibration
from deepfailguard.seeding import generator
from deepfailguard.types import Bounds

SIZE, CLASSES = 8, 3


@dataclass(frozen=True)
class TinyNet:
    """A convolution with dropout and batch norm: everything that makes resuming hard."""

    channels: int = 1
    width: int = 8
    name: str = "tiny_net"

    def build(self, classes: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(self.channels, self.width, 3, padding=1),
            nn.BatchNorm2d(self.width),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(self.width * 4, classes),
        )


def bars(count: int, seed: int = 0, noise: float = 0.25) -> ImageSet:
    """Images whose class is the place of a bright bar: easy, but not without errors under noise."""
    random = generator(seed, "bars")
    labels = torch.randint(CLASSES, (count,), generator=random)
    images = noise * torch.rand(count, 1, SIZE, SIZE, generator=random)
    rows = labels * 3
    images[torch.arange(count), 0, rows] += 0.6 * torch.rand(count, 1, generator=random)
    return ImageSet(images.clamp(0, 1), labels)


def bar_splits(count: int = 300, name: str = "bars") -> Splits:
    train, calibration = train_and_calibration(bars(count, seed=1))
    names = tuple(f"bar {k}" for k in range(CLASSES))
    return Splits(name, names, Bounds(), train, calibration, bars(count // 3, seed=2))


@dataclass(frozen=True)
class Bars:
    """A data set source."""

    count: int = 300

    def load(self) -> Splits:
        return bar_splits(self.count)


class Affine(nn.Module):
    """x -> W flatten(x) + b: its boundary distances are known in closed form."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T + self.bias


def affine(seed: int = 0, classes: int = CLASSES, inputs: int = SIZE * SIZE) -> Affine:
    random = generator(seed, "affine")
    return Affine(torch.randn(classes, inputs, generator=random), torch.randn(classes, generator=random))


def template_model(seed: int = 0, noise: float = 0.0) -> Affine:
    """A sound classifier of `bars`: it sums each bar's row; noise on its weights makes it worse."""
    weight = torch.zeros(CLASSES, SIZE, SIZE)
    for label in range(CLASSES):
        weight[label, label * 3] = 1.0
    weight += noise * torch.randn(weight.shape, generator=generator(seed, "template"))
    return Affine(weight.flatten(1), torch.zeros(CLASSES))
