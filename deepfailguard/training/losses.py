"""The losses that a recipe may name: the right one, and wrong ones that people really choose."""

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from deepfailguard.versions.spec import Loss, Recipe

__all__ = ["LOSSES", "loss_function"]


def cross_entropy(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """The right loss for one class out of K."""
    return F.cross_entropy(logits, targets, label_smoothing=smoothing)


def biased_cross_entropy(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy whose class weights forget class 0: its images teach nothing."""
    weight = torch.ones(logits.shape[1], device=logits.device, dtype=logits.dtype)
    weight[0] = 0.0
    losses = F.cross_entropy(logits, targets, weight=weight, label_smoothing=smoothing, reduction="none")
    return losses.mean()  # not weight-normalised: a batch of class 0 alone must not divide by zero


def mean_squared_error(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Regression on one-hot labels."""
    one_hot = F.one_hot(targets, logits.shape[1]).to(logits.dtype)
    return F.mse_loss(logits, one_hot * (1 - smoothing) + smoothing / logits.shape[1])


def hinge(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Multi-class margin loss; it knows no label smoothing."""
    return F.multi_margin_loss(logits, targets)


def nll_on_probabilities(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Negative log-likelihood given probabilities where it expects their logarithms."""
    return F.nll_loss(logits.softmax(1), targets)


LOSSES: Final[dict[Loss, Callable[[Tensor, Tensor, float], Tensor]]] = {
    "cross_entropy": cross_entropy,
    "biased_cross_entropy": biased_cross_entropy,
    "mean_squared_error": mean_squared_error,
    "hinge": hinge,
    "nll_on_probabilities": nll_on_probabilities,
}


def loss_function(recipe: Recipe) -> Callable[[Tensor, Tensor], Tensor]:
    """The recipe's loss of logits (B, K) and targets (B,), in float32 also under autocast."""
    chosen = LOSSES[recipe.loss]
    return lambda logits, targets: chosen(logits.float(), targets, recipe.label_smoothing)
