import math

import pytest
import torch
from torch.nn import functional as F

from deepfailguard.training.losses import LOSSES, loss_function
from deepfailguard.training.schedule import learning_rate_at
from deepfailguard.versions.spec import Loss, Recipe

LOGITS = torch.tensor([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3]])
TARGETS = torch.tensor([0, 2])


def gradient(loss: Loss) -> torch.Tensor:
    logits = LOGITS.clone().requires_grad_()
    loss_function(Recipe(loss=loss))(logits, TARGETS).backward()
    assert logits.grad is not None
    return logits.grad


def test_the_right_one_is_torchs() -> None:
    assert loss_function(Recipe())(LOGITS, TARGETS) == F.cross_entropy(LOGITS, TARGETS)


@pytest.mark.parametrize("loss", [name for name in LOSSES if name != "cross_entropy"])
def test_every_wrong_loss_teaches_something_else(loss: Loss) -> None:
    right, wrong = gradient("cross_entropy").flatten(), gradient(loss).flatten()
    assert F.cosine_similarity(right, wrong, dim=0) < 0.999


def test_biased_cross_entropy_forgets_class_zero() -> None:
    assert gradient("biased_cross_entropy")[0].abs().max() == 0
    assert gradient("biased_cross_entropy")[1].abs().max() > 0


def test_one_cycle_rises_peaks_and_falls() -> None:
    recipe = Recipe(learning_rate=1.0, schedule="one_cycle")
    rates = [learning_rate_at(step, 100, recipe) for step in range(100)]
    assert max(range(100), key=rates.__getitem__) == 25
    assert rates[0] == pytest.approx(0.04)
    assert rates[-1] < 0.01


def test_cosine_matches_its_formula() -> None:
    recipe = Recipe(learning_rate=2.0, schedule="cosine")
    expected = 0.002 + (2.0 - 0.002) * (1 + math.cos(math.pi * 0.3)) / 2
    assert learning_rate_at(30, 100, recipe) == pytest.approx(expected)
