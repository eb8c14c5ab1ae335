"""Optimizers and learning rates. A rate depends on the step number alone, so a resumed training needs no state."""

import math

import torch
from torch import nn

from deepfailguard.versions.spec import Recipe

__all__ = ["learning_rate_at", "make_optimizer", "set_learning_rate"]

_WARM_UP_SHARE = 0.25
_FIRST_RATE = 0.04  # of the peak, where one_cycle begins
_LAST_RATE = 1e-3  # of the peak, where both schedules end


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer over all parameters."""
    rate, decay = recipe.learning_rate, recipe.weight_decay
    if recipe.optimizer == "sgd":
        nesterov = recipe.momentum > 0
        return torch.optim.SGD(
            model.parameters(), lr=rate, momentum=recipe.momentum, weight_decay=decay, nesterov=nesterov
        )
    if recipe.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=rate, weight_decay=decay)
    return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay)


def learning_rate_at(step: int, steps: int, recipe: Recipe) -> float:
    """The learning rate of a step.

    >>> learning_rate_at(0, 100, Recipe(learning_rate=1.0, schedule="constant"))
    1.0
    """
    if recipe.schedule == "constant":
        return recipe.learning_rate
    warm_up = round(steps * _WARM_UP_SHARE) if recipe.schedule == "one_cycle" else 0
    if step < warm_up:
        return recipe.learning_rate * _cosine_between(_FIRST_RATE, 1.0, step / warm_up)
    return recipe.learning_rate * _cosine_between(1.0, _LAST_RATE, (step - warm_up) / max(1, steps - warm_up))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter group the same learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def _cosine_between(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
