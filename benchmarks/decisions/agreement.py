"""The agreement-aware posterior: what a version shows, and what the others think of its answer, as one probability."""

from typing import Any, ClassVar, Final, Self

import torch
from torch import Tensor

from deepfailguard.predictor.checks import check_calibration, check_fitted
from deepfailguard.predictor.class_posterior import CalibratedSoftmax, heard
from deepfailguard.types import Evidence, Need

__all__ = ["AgreementPosterior"]

_LEAST: Final = 1e-12


class AgreementPosterior:
    """P(a version is right | its own scores, what the others think of its label, how many agree).

    A logistic regression for each version on its log odds, its lead, its entropy, the others' mean probability of its
    label and the share of the others that give it. A version that calibration shows only right or only wrong has
    Laplace's rate.

    Attributes:
        softmax_: of the versions.
        models_: a regression of scikit-learn, or P(right) as a number, of each version.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"logits"})
    judges_alone: ClassVar[bool] = False

    def __init__(self) -> None:
        self.softmax_: CalibratedSoftmax | None = None
        self.models_: list[Any] = []

    def fit(self, evidence: Evidence, truth: Tensor) -> Self:
        """Learn from calibration evidence with logits and the true classes (B,) int64."""
        from sklearn.linear_model import LogisticRegression

        correct = check_calibration(evidence, truth)
        self.softmax_ = CalibratedSoftmax.fit(evidence, truth)
        signs = _signs(self.softmax_.log_probability(evidence), evidence.labels, heard(evidence))
        self.models_ = []
        for column, answered in enumerate(evidence.answered.unbind(1)):
            shown, right = signs[answered, column].numpy(), correct[answered, column]
            if 0 < int(right.sum()) < len(right):
                self.models_.append(LogisticRegression(max_iter=300).fit(shown, right.numpy()))
            else:
                self.models_.append((int(right.sum()) + 1) / (len(right) + 2))
        return self

    def failure_probability(self, evidence: Evidence) -> Tensor:
        """P(version's answer is wrong | evidence), (B, N) float64 in [0, 1]; 1 where there is no answer."""
        softmax = check_fitted(self, self.softmax_)
        signs = _signs(softmax.log_probability(evidence), evidence.labels, heard(evidence))
        failure = torch.ones(evidence.labels.shape, dtype=torch.float64)
        for column, (model, answered) in enumerate(zip(self.models_, evidence.answered.unbind(1), strict=True)):
            if isinstance(model, float):
                failure[answered, column] = 1 - model
            elif answered.any():
                failure[answered, column] = torch.from_numpy(model.predict_proba(signs[answered, column].numpy())[:, 0])
        return failure


def _signs(log_probability: Tensor, labels: Tensor, said: Tensor) -> Tensor:
    """What the regressions see, (B, N, 5) float64, of log-probabilities (B, N, K), labels and who answered (B, N)."""
    probability = log_probability.exp()
    top = probability.topk(min(2, probability.shape[2]), dim=2).values
    odds = top[:, :, 0].clamp(_LEAST, 1 - _LEAST).logit()
    entropy = -(probability * log_probability.clamp_min(-700.0)).sum(2)
    asked = labels.clamp_min(0)[:, None, :].expand(-1, labels.shape[1], -1)
    others = said[:, :, None] & ~torch.eye(labels.shape[1], dtype=torch.bool)  # [b, who thinks, of whose label]
    count = others.sum(1).clamp_min(1)
    believed = (probability.gather(2, asked) * others).sum(1) / count
    agreeing = ((labels[:, :, None] == labels[:, None, :]) & others).sum(1) / count
    return torch.stack([odds, top[:, :, 0] - top[:, :, -1], entropy, believed, agreeing], 2)
