"""A tiny data set and a tiny network that every fault of data and weights fits."""

import pytest
import torch
from torch import nn

from deepfailguard.data.base import ImageSet, Splits
from deepfailguard.types import Bounds


def images(count: int, seed: int) -> ImageSet:
    rng = torch.Generator().manual_seed(seed)
    # Values well inside the bounds, so that a change is not cut off unless a test wants that.
    pixels = 0.2 + 0.6 * torch.rand(count, 2, 6, 8, generator=rng)
    return ImageSet(pixels, torch.arange(count) % 5)


@pytest.fixture
def splits() -> Splits:
    return Splits("tiny", tuple("abcde"), Bounds(-1.0, 1.0), images(100, 1), images(20, 2), images(40, 3))


@pytest.fixture
def cnn() -> nn.Module:
    layers = [
        nn.Conv2d(2, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.Flatten(),
        nn.Linear(192, 5),
    ]
    return nn.Sequential(*layers).eval()
