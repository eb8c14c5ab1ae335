"""`SoftVotePredictor`: the mean of what the versions hold probable."""

from typing import ClassVar, Final, Literal, Self

import torch
from torch import Tensor

from deepfailguard.errors import ConfigurationError
from deepfailguard.predictor.checks import (
    check_calibration,
    check_evidence,
    check_fitted,
    check_state,
    count_answers,
)
from deepfailguard.predictor.class_posterior import (
    FLOOR,
    CalibratedSoftmax,
    failure_of,
    fit_sharpness,
    heard,
    smoothed,
)
from deepfailguard.types import Evidence, Need

__all__ = ["SoftVotePredictor"]

_SMALLEST: Final = torch.finfo(torch.float64).tiny


class SoftVotePredictor:
    """P(truth is class k) as the mean of the versions' calibrated softmaxes: the rule of most ensembles.

    The mean of probabilities ("linear opinion pool", soft vote) or of log-probabilities ("log opinion pool": a
    product of experts). Versions that did not answer, or with logits that are not finite, are left out of the mean;
    where nobody is left, all classes are equally probable. The mean of calibrated probabilities is too careful where
    versions differ, that of log-probabilities too sure where they err together; so the mean is raised to the power with
    the smallest log loss on calibration inputs, and made to sum to 1, which leaves the order of the classes as it is.
    No class has a probability below 1 / (K (M + 2)) for M calibration inputs.

    Args:
        weights: "equal", or "accuracy" for the versions' calibration accuracy, smoothed by Laplace's rule.
        pool: "mean" of probabilities, or "log" for that of log-probabilities, none of them below -12.

    Attributes:
        softmax_: of the N versions.
        weight_: (N,) float64 > 0.
        power_: of the mean, > 0.

    Example:
        >>> logits = torch.tensor([[[2.0, 0.0], [2.0, 0.0]], [[0.0, 3.0], [1.0, 0.0]]])
        >>> found = torch.ones(2, 2, dtype=torch.bool)
        >>> evidence = Evidence(logits.argmax(2), torch.ones(2, 2), found, logits)
        >>> predictor = SoftVotePredictor().fit(evidence, torch.tensor([0, 1]))
        >>> predictor.class_probability(evidence).argmax(1).tolist()
        [0, 1]
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"logits"})
    judges_alone: ClassVar[bool] = False

    def __init__(self, weights: Literal["equal", "accuracy"] = "equal", pool: Literal["mean", "log"] = "mean") -> None:
        if weights not in ("equal", "accuracy"):
            raise ConfigurationError(f"weights must be 'equal' or 'accuracy', got {weights!r}")
        if pool not in ("mean", "log"):
            raise ConfigurationError(f"pool must be 'mean' or 'log', got {pool!r}")
        self.weights = weights
        self.pool = pool
        self.softmax_: CalibratedSoftmax | None = None
        self.weight_: Tensor | None = None
        self.power_ = 1.0

    def fit(self, evidence: Evidence, truth: Tensor) -> Self:
        """Learn from calibration evidence with logits and the true classes (B,) int64."""
        correct = check_calibration(evidence, truth)
        self.softmax_ = CalibratedSoftmax.fit(evidence, truth)
        accuracy = count_answers(evidence, correct).smoothed_accuracy
        self.weight_ = (accuracy if self.weights == "accuracy" else torch.ones_like(accuracy)).cpu()
        pooled = self._log_pool(self.softmax_, self.weight_, evidence)
        self.power_ = fit_sharpness(pooled, truth.to(pooled.device))
        return self

    def class_probability(self, evidence: Evidence) -> Tensor:
        """P(truth is class k | evidence), (B, K) float64."""
        softmax, weight = check_fitted(self, self.softmax_), check_fitted(self, self.weight_)
        check_evidence(evidence, len(weight))
        return smoothed((self._log_pool(softmax, weight, evidence) * self.power_).softmax(1), softmax.inputs)

    def failure_probability(self, evidence: Evidence) -> Tensor:
        """P(version's answer is wrong | evidence of all), (B, N) float64 in [0, 1]; 1 where there is no answer."""
        return failure_of(self.class_probability(evidence), evidence)

    def state(self) -> dict[str, Tensor]:
        """What was learned, as named tensors."""
        softmax, weight = check_fitted(self, self.softmax_), check_fitted(self, self.weight_)
        return {**softmax.state(), "weight": weight, "power": torch.tensor(self.power_, dtype=torch.float64)}

    def with_state(self, state: dict[str, Tensor]) -> Self:
        """Take back what `state` returned; returns itself."""
        check_state(self, state, (*CalibratedSoftmax.STATE, "weight", "power"))
        self.softmax_, self.weight_ = CalibratedSoftmax.from_state(state), state["weight"]
        self.power_ = float(state["power"])
        return self

    def _log_pool(self, softmax: CalibratedSoftmax, weight: Tensor, evidence: Evidence) -> Tensor:
        """Logarithms (B, K) of the mean, up to a constant per input."""
        log_probability = softmax.log_probability(evidence)
        share = heard(evidence) * weight.to(log_probability.device)
        if self.pool == "log":
            share = share / share.sum(1, keepdim=True).clamp_min(_SMALLEST)
            return (log_probability.clamp_min(FLOOR) * share[:, :, None]).sum(1)
        # Where nobody is heard all classes have the same tiny sum.
        return (log_probability.exp() * share[:, :, None]).sum(1).clamp_min(_SMALLEST).log()
