"""Calibration evidence in which distance and correctness go together."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from deepfailguard.seeding import generator
from deepfailguard.types import Evidence


@dataclass(frozen=True)
class Calibration:
    evidence: Evidence
    truth: Tensor
    correct: Tensor


@pytest.fixture
def calibration() -> Calibration:
    """400 inputs, 3 versions of accuracies near 0.9, 0.7 and 0.5; every distance was found."""
    random = generator(0, "calibration")
    correct = torch.rand(400, 3, generator=random) < torch.tensor([0.9, 0.7, 0.5])
    distance = torch.where(correct, 1.0, 0.4) * torch.rand(400, 3, generator=random) + 0.05
    truth = torch.randint(0, 5, (400,), generator=random)
    other = (truth[:, None] + torch.randint(1, 5, (400, 3), generator=random)) % 5
    labels = torch.where(correct, truth[:, None], other)
    return Calibration(Evidence(labels, distance, torch.ones(400, 3, dtype=torch.bool)), truth, correct)
