"""The baseline that knows only how accurate each version was on calibration data."""

from typing import ClassVar, Self

import torch
from torch import Tensor

from deepfailguard.predictor.checks import (
    check_calibration,
    check_evidence,
    check_fitted,
    check_state,
    count_answers,
)
from deepfailguard.types import Evidence, Need

__all__ = ["PriorPredictor"]


class PriorPredictor:
    """P(wrong) of a version is its calibration error, whatever the input: the accuracy-only ablation.

    With the rule `highest_posterior` it is the best single version that answers. The error is smoothed by
    Laplace's (wrong + 1) / (n + 2), so no version counts as infallible; inputs that a version did not answer
    teach nothing of it.

    Attributes:
        accuracy_: (N,) float64 in (0, 1).

    Example:
        >>> labels = torch.zeros(8, 1, dtype=torch.int64)
        >>> evidence = Evidence(labels, torch.ones(8, 1), torch.ones(8, 1, dtype=torch.bool))
        >>> truth = torch.zeros(8, dtype=torch.int64)
        >>> round(float(PriorPredictor().fit(evidence, truth).failure_probability(evidence)[0, 0]), 3)
        0.1
    """

    needs: ClassVar[frozenset[Need]] = frozenset()
    judges_alone: ClassVar[bool] = True

    def __init__(self) -> None:
        self.accuracy_: Tensor | None = None

    def fit(self, evidence: Evidence, truth: Tensor) -> Self:
        """Learn from calibration evidence and the true classes (B,) int64."""
        correct = check_calibration(evidence, truth)
        self.accuracy_ = count_answers(evidence, correct).smoothed_accuracy
        return self

    def failure_probability(self, evidence: Evidence) -> Tensor:
        """P(version's answer is wrong), (B, N) float64 in [0, 1]; 1 where there is no answer."""
        accuracy = check_fitted(self, self.accuracy_)
        check_evidence(evidence, len(accuracy))
        return torch.where(evidence.answered, (1 - accuracy).to(evidence.labels.device), 1.0)

    def state(self) -> dict[str, Tensor]:
        """What was learned, as named tensors."""
        return {"accuracy": check_fitted(self, self.accuracy_)}

    def with_state(self, state: dict[str, Tensor]) -> Self:
        """Take back what `state` returned; returns itself."""
        check_state(self, state, ("accuracy",))
        self.accuracy_ = state["accuracy"]
        return self
