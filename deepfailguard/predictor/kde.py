"""The published failure predictor: Bayes on kernel densities of boundary distances."""

from collections.abc import Sequence
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from deepfailguard.errors import ConfigurationError
from deepfailguard.predictor.answer_densities import AnswerDensities, fit_answer_densities, usable_distances
from deepfailguard.predictor.checks import (
    AnswerCounts,
    check_calibration,
    check_evidence,
    check_fitted,
    check_state,
    count_answers,
)
from deepfailguard.predictor.density import MIN_POINTS, Density, logistic
from deepfailguard.types import Evidence, Need

__all__ = ["KdePredictor"]


class KdePredictor:
    """P(wrong | distance) by Bayes: a density for right, one for wrong answers, calibration accuracy as prior.

    With accuracy a and densities f of the distances d of the calibration answers, per version::

        P(wrong | d) = (1 - a) f_wrong(d) / (a f_right(d) + (1 - a) f_wrong(d))

    evaluated in log space, so no distance makes it undefined. Where the formula says nothing, or ours departs from
    the published code (which takes distances that were not found as they are, and log(1 + d) a where both
    densities underflow):

    ========================================  =============================================================
    case                                      failure probability
    ========================================  =============================================================
    no answer (label -1)                      1
    < 2 right or < 2 wrong answers            the prior alone, smoothed: (wrong + 1) / (n + 2)
    < 2 right or < 2 wrong found distances    prior and whether the distance was found
    all distances of one value                as above; bandwidths have a floor of 1e-4 of the version's range
    distance not found, NaN or infinite       prior times P(not found | wrong) / P(not found | right), Laplace
                                              smoothed; its size is ignored
    (not) found never seen in calibration     whether it was found is left out: prior (and densities)
    outside the range of calibration          the distance counts as the nearest end of that range
    both densities underflow                  the densities are left out
    ========================================  =============================================================

    Calibration inputs that a version did not answer teach nothing of it.

    Args:
        prior: "accuracy" as published, or "equal" to leave the accuracy out (P = 1/2 before the distance).

    Attributes:
        accuracy_: (N,) float64 in [0, 1], prior probability that an answer is right.
        outcome_: (N, 2) float64, log P(outcome | wrong) - log P(outcome | right) of "not found" and "found".
        densities_: of every version.

    Example:
        >>> labels = torch.zeros(6, 1, dtype=torch.int64)
        >>> distance = torch.tensor([[0.1], [0.2], [0.3], [1.0], [1.1], [1.2]])
        >>> evidence = Evidence(labels, distance, torch.ones(6, 1, dtype=torch.bool))
        >>> predictor = KdePredictor().fit(evidence, (distance[:, 0] <= 0.5).long())
        >>> [round(p, 3) for p in predictor.failure_probability(evidence).flatten().tolist()]
        [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"distances"})
    judges_alone: ClassVar[bool] = True

    def __init__(self, prior: Literal["accuracy", "equal"] = "accuracy") -> None:
        if prior not in ("accuracy", "equal"):
            raise ConfigurationError(f"prior must be 'accuracy' or 'equal', got {prior!r}")
        self.prior = prior
        self.accuracy_: Tensor | None = None
        self.outcome_: Tensor | None = None
        self.densities_: AnswerDensities | None = None

    @classmethod
    def from_densities(
        cls,
        right: Sequence[tuple[Tensor, float]],
        wrong: Sequence[tuple[Tensor, float]],
        accuracy: Tensor,
        prior: Literal["accuracy", "equal"] = "accuracy",
    ) -> Self:
        """A predictor of densities that were estimated elsewhere, such as the published ones.

        Whether a distance was found says nothing then, as nothing is known of it.

        Args:
            right: for each version the points (n,) and the bandwidth of the density of right answers.
            wrong: the same of wrong answers.
            accuracy: (N,) in [0, 1].
            prior: as in the constructor.
        """
        if accuracy.shape != (len(right),) or not bool(((accuracy >= 0) & (accuracy <= 1)).all()):
            raise ConfigurationError(
                f"accuracy must be ({len(right)},) in [0, 1], one per version, got {accuracy.tolist()}"
            )
        predictor = cls(prior)
        predictor.densities_ = AnswerDensities(
            tuple(Density(points.double(), float(bandwidth)) for points, bandwidth in right),
            tuple(Density(points.double(), float(bandwidth)) for points, bandwidth in wrong),
        )
        predictor.accuracy_ = accuracy.double()
        predictor.outcome_ = torch.zeros(len(right), 2, dtype=torch.float64)
        return predictor

    def fit(self, evidence: Evidence, truth: Tensor) -> Self:
        """Learn from calibration evidence and the true classes (B,) int64."""
        correct = check_calibration(evidence, truth)
        counts = count_answers(evidence, correct)
        few = (counts.right < MIN_POINTS) | (counts.wrong < MIN_POINTS)
        self.accuracy_ = torch.where(few, counts.smoothed_accuracy, counts.right / (counts.right + counts.wrong))
        self.outcome_ = torch.where(few[:, None], 0.0, _outcome_log_ratios(evidence, correct, counts))
        self.densities_ = fit_answer_densities(evidence, correct)
        return self

    def failure_probability(self, evidence: Evidence) -> Tensor:
        """P(version's answer is wrong | evidence), (B, N) float64 in [0, 1]; 1 where there is no answer."""
        accuracy = check_fitted(self, self.accuracy_)
        check_evidence(evidence, len(accuracy))
        log_odds = self._prior_log_odds(accuracy).to(evidence.distance.device) + self._evidence_log_ratio(evidence)
        return torch.where(evidence.answered, logistic(log_odds), 1.0)

    def state(self) -> dict[str, Tensor]:
        """What was learned, as named tensors."""
        accuracy, outcome = check_fitted(self, self.accuracy_), check_fitted(self, self.outcome_)
        assert self.densities_ is not None  # all are set together
        return {"accuracy": accuracy, "outcome": outcome, **self.densities_.state()}

    def with_state(self, state: dict[str, Tensor]) -> Self:
        """Take back what `state` returned; returns itself."""
        check_state(self, state, ("accuracy", "outcome", *AnswerDensities.state_names()))
        self.accuracy_, self.outcome_ = state["accuracy"], state["outcome"]
        self.densities_ = AnswerDensities.from_state(state)
        return self

    def _prior_log_odds(self, accuracy: Tensor) -> Tensor:
        if self.prior == "equal":
            return torch.zeros_like(accuracy)
        return torch.log1p(-accuracy) - torch.log(accuracy)

    def _evidence_log_ratio(self, evidence: Evidence) -> Tensor:
        assert self.densities_ is not None  # the caller has checked that this is fitted
        assert self.outcome_ is not None
        device = evidence.distance.device
        missed, found = self.outcome_.to(device).unbind(1)
        at = self.densities_.log_at(evidence.distance)
        # Both -inf: no density, or both underflow; finite, so that it cannot cancel a certain prior to NaN.
        ratio = torch.nan_to_num(at.wrong - at.right, nan=0.0)
        ratio = torch.where(self.densities_.both_known.to(device), ratio, 0.0)
        return torch.where(usable_distances(evidence), found + ratio, missed)


def _outcome_log_ratios(evidence: Evidence, correct: Tensor, counts: AnswerCounts) -> Tensor:
    """Log ratios (N, 2) of "not found" and "found", Laplace smoothed; 0 if only one of them was ever seen."""
    usable = usable_distances(evidence)
    missed = evidence.answered & ~usable
    both_seen = missed.any(0) & usable.any(0)
    ratios = []
    for outcome in (missed, usable):
        wrong = ((outcome & ~correct).sum(0) + 1) / (counts.wrong + 2)
        right = ((outcome & correct).sum(0) + 1) / (counts.right + 2)
        ratios.append(torch.where(both_seen, wrong.log() - right.log(), 0.0))
    return torch.stack(ratios, dim=1)
