"""Answers grouped by failure probability: what makes measures independent of the order of the inputs."""

from dataclasses import dataclass

import torch
from torch import Tensor

from deepfailguard.errors import DataFormatError

__all__ = ["TiedAnswers", "check_predictions", "group_ties"]


@dataclass(frozen=True, slots=True)
class TiedAnswers:
    """Answers by their G distinct failure probabilities, ascending.

    Attributes:
        wrong: (G,) float64, how many wrong answers have this failure probability.
        right: (G,) float64, how many right ones.
    """

    wrong: Tensor
    right: Tensor


def group_ties(failure_probability: Tensor, wrong: Tensor) -> TiedAnswers:
    """Group answers by equal failure probability.

    Args:
        failure_probability: (B,) in [0, 1].
        wrong: (B,) bool.

    >>> group_ties(torch.tensor([0.5, 0.1, 0.5]), torch.tensor([True, False, False])).wrong.tolist()
    [0.0, 1.0]
    """
    check_predictions(failure_probability, wrong)
    _, index = torch.unique(failure_probability, sorted=True, return_inverse=True)
    positive = torch.bincount(index, weights=wrong.double())
    return TiedAnswers(positive, torch.bincount(index).double() - positive)


def check_predictions(failure_probability: Tensor, wrong: Tensor, *, least: int = 1) -> None:
    """Refuse what cannot be measured.

    Args:
        failure_probability: (B,) in [0, 1].
        wrong: (B,) bool.
        least: how many inputs there must be; 0 for a batch among others, which may be empty.

    Raises:
        DataFormatError: too few inputs, other shapes, or values that are NaN or outside [0, 1].
    """
    if wrong.ndim != 1 or wrong.dtype != torch.bool or len(wrong) < least:
        raise DataFormatError(
            f"wrong must be bool (B,) with B >= {least}, got {wrong.dtype} {tuple(wrong.shape)}; "
            "measure one version at a time: wrong = labels[:, i] != truth"
        )
    if failure_probability.shape != wrong.shape:
        raise DataFormatError(
            f"failure probabilities must be ({len(wrong)},) like wrong, got {tuple(failure_probability.shape)}"
        )
    inside = (failure_probability >= 0) & (failure_probability <= 1)
    if not bool(inside.all()):
        raise DataFormatError(
            f"failure probabilities must be in [0, 1], got {failure_probability[~inside][0].item()} "
            f"and {int((~inside).sum()) - 1} more outside"
        )
