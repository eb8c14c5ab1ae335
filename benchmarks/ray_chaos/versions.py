"""A guard of three small versions that hang while a file says so, and what it answers without any trouble."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from deepfailguard.guard.guarded import GuardedPredictor
from deepfailguard.predictor.soft_vote import SoftVotePredictor
from deepfailguard.seeding import generator

__all__ = ["NAMES", "Sound", "Switched", "images_of", "saved_guard"]

NAMES: Final = ("north", "middle", "south")
_SIZE, _CLASSES, _CALIBRATION = 16, 4, 400
_STEP: Final = 0.02


class Switched(nn.Module):
    """Compares an image with one noisy template per class; hangs while there is a file of its name in the folder."""

    def __init__(self, name: str, folder: Path, seed: int) -> None:
        super().__init__()
        self.stop = folder / name
        noise = 0.4 * torch.randn(_CLASSES, _SIZE * _SIZE, generator=generator(seed, "ray versions"))
        self.linear = nn.Linear(_SIZE * _SIZE, _CLASSES, bias=False)
        self.linear.weight.data = _templates().flatten(1) - 0.5 + noise

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K), once there is no such file."""
        while self.stop.exists():
            time.sleep(_STEP)
        logits: Tensor = self.linear(x.flatten(1)) / 4
        return logits


@dataclass(frozen=True)
class Sound:
    """What must come out for a batch.

    Attributes:
        versions: (B, N) int64, each version's answers.
        decided: (B,) int64 labels by the versions that answered.
    """

    versions: Tensor
    decided: Mapping[tuple[int, ...], Tensor]


def images_of(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images (B, 1, 16, 16) in [0, 1] and labels (B,): templates under noise."""
    random = generator(seed, "ray images")
    labels = torch.randint(_CLASSES, (count,), generator=random)
    noise = torch.rand(count, _SIZE, _SIZE, generator=random)
    return (0.25 * _templates()[labels] + 0.75 * noise)[:, None], labels


def saved_guard(folder: Path, orders: Path, batch: Tensor) -> tuple[dict[str, nn.Module], Sound]:
    """Fit and save a guard; its models, and what it answers to a batch."""
    models: dict[str, nn.Module] = {name: Switched(name, orders, seed) for seed, name in enumerate(NAMES)}
    guard = GuardedPredictor.fit(models, images_of(_CALIBRATION, seed=1), predictor=SoftVotePredictor())
    guard.save(folder)
    columns = range(len(NAMES))
    parts = [part for size in range(1, len(NAMES) + 1) for part in combinations(columns, size)]
    decided = {part: guard.without([NAMES[c] for c in columns if c not in part])(batch).labels for part in parts}
    return models, Sound(guard(batch).version_labels, decided)


def _templates() -> Tensor:
    """(K, 16, 16), each a bright quarter of the image."""
    templates = torch.zeros(_CLASSES, _SIZE, _SIZE)
    half = _SIZE // 2
    for label in range(_CLASSES):
        row, column = half * (label // 2), half * (label % 2)
        templates[label, row : row + half, column : column + half] = 1.0
    return templates
