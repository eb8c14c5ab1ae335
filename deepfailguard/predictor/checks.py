"""What every predictor checks of its input, and what every predictor counts."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from deepfailguard.errors import ConfigurationError, DataFormatError, NotFittedError
from deepfailguard.types import Evidence

__all__ = ["AnswerCounts", "check_calibration", "check_evidence", "check_fitted", "check_state", "count_answers"]


Learned = TypeVar("Learned")


@dataclass(frozen=True, slots=True)
class AnswerCounts:
    """How often each version answered right and wrong; inputs that it did not answer do not count.

    Attributes:
        right: (N,) float64, whole numbers >= 0.
        wrong: (N,) float64, whole numbers >= 0.
    """

    right: Tensor
    wrong: Tensor

    @property
    def smoothed_accuracy(self) -> Tensor:
        """(N,) float64 in (0, 1): Laplace's (right + 1) / (n + 2), also defined without any answer."""
        return (self.right + 1) / (self.right + self.wrong + 2)


def count_answers(evidence: Evidence, correct: Tensor) -> AnswerCounts:
    """Count right and wrong calibration answers per version."""
    right, wrong = evidence.answered & correct, evidence.answered & ~correct
    return AnswerCounts(right.sum(0).double(), wrong.sum(0).double())


def check_calibration(evidence: Evidence, truth: Tensor) -> Tensor:
    """Whether each calibration answer was right, (B, N) bool; refuses data of which a predictor cannot learn.

    Raises:
        DataFormatError: no inputs, or `truth` is not (B,) int64 >= 0.
    """
    _check_shapes(evidence)
    if len(evidence) == 0 or evidence.versions == 0:
        raise DataFormatError(
            f"a predictor learns from at least one input and one version, got {tuple(evidence.labels.shape)}; "
            "give it calibration data"
        )
    if truth.dtype != torch.int64 or truth.shape != evidence.labels.shape[:1]:
        raise DataFormatError(
            f"truth must be int64 ({len(evidence)},), the class of each input, got {truth.dtype} {tuple(truth.shape)}"
        )
    if int(truth.min()) < 0:
        raise DataFormatError(f"true classes must be >= 0 (-1 means no answer), got {int(truth.min())}")
    return evidence.labels == truth.to(evidence.labels.device)[:, None]


def check_evidence(evidence: Evidence, versions: int) -> None:
    """Refuse evidence of another number of versions than the predictor was fitted on.

    Raises:
        ConfigurationError: the number of versions differs.
        DataFormatError: labels, distances and `found` do not have one shape.
    """
    _check_shapes(evidence)
    if evidence.versions != versions:
        raise ConfigurationError(
            f"the predictor was fitted on {versions} versions, got evidence of {evidence.versions}; "
            "fit it again on the versions that you ask"
        )


def check_fitted(predictor: object, learned: Learned | None) -> Learned:
    """Return what was learned.

    Raises:
        NotFittedError: nothing was learned yet.
    """
    if learned is None:
        name = type(predictor).__name__
        raise NotFittedError(f"this {name} was not fitted yet; call fit(evidence, truth) or with_state(state) first")
    return learned


def check_state(predictor: object, state: dict[str, Tensor], expected: Iterable[str]) -> None:
    """Refuse a state that another kind of predictor returned.

    Raises:
        ConfigurationError: the tensors' names differ.
    """
    wanted = sorted(expected)
    if sorted(state) != wanted:
        raise ConfigurationError(
            f"{type(predictor).__name__} expects the state {', '.join(wanted)}, "
            f"got {', '.join(sorted(state)) or 'nothing'}; pass what state() of the same class returned"
        )


def _check_shapes(evidence: Evidence) -> None:
    shapes = {tuple(t.shape) for t in (evidence.labels, evidence.distance, evidence.found)}
    if len(shapes) != 1 or evidence.labels.ndim != 2:
        raise DataFormatError(
            f"evidence needs labels, distance and found of one shape (B, N), got {sorted(shapes)}; "
            "make it with Evidence.stack"
        )
