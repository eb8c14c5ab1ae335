"""The four published ablations that use the distance's densities and leave the accuracy out."""

from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from deepfailguard.errors import ConfigurationError, NotFittedError
from deepfailguard.predictor.answer_densities import AnswerDensities, fit_answer_densities, usable_distances
from deepfailguard.predictor.checks import check_calibration, check_evidence, check_state
from deepfailguard.predictor.density import logistic
from deepfailguard.types import Evidence, Need

__all__ = ["DistanceOnlyPredictor", "Form", "failure_score", "trust"]

Form = Literal["v1", "v2", "v3", "v4"]
_FORMS = ("v1", "v2", "v3", "v4")
_LOG_SMALLEST, _LOG_RANGE = -750.0, 1000.0


class DistanceOnlyPredictor:
    """A failure score from the densities f_right, f_wrong alone, without the accuracy of the versions.

    The published rule answers with the version of the largest trust t; this score is smallest where t is
    largest, so `highest_posterior` picks the same version.

    ====  =============================  =================
    form  trust t                        failure score
    ====  =============================  =================
    v1    f_right - f_wrong              (1 - u(t)) / 2
    v2    f_right / (f_right + f_wrong)  1 - t
    v3    f_right                        1 - u(t)
    v4    1 - f_wrong                    (1 - t) / (2 - t)
    ====  =============================  =================

    with u(t) = sign(t) (log |t| + 750) / 1000 within [-1, 1], and u(0) = 0. The maps are decreasing and the same
    for every version, so they keep the order of versions. They are also chosen such that rounding keeps it:
    trusts that differ may get equal scores only if they differ by less than 1e-12 |t| (v1, v3; u covers every
    float64), by less than 1e-15 (v2), or by less than 1e-15 (1 + f_wrong)^2 (v4). Equal trusts get equal
    scores. It is a score in [0, 1], not a probability.

    A density that cannot be estimated (fewer than two answers of its kind) counts as 0, and v2 as 1/2 where
    both are 0. The score is 1 where there is no answer, or no finite distance was found. Distances outside the
    range of calibration count as the nearest end of that range.

    Args:
        form: which trust.

    Attributes:
        densities_: of every version.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"distances"})
    judges_alone: ClassVar[bool] = True

    def __init__(self, form: Form = "v1") -> None:
        if form not in _FORMS:
            raise ConfigurationError(f"form must be one of {', '.join(_FORMS)}, got {form!r}")
        self.form = form
        self.densities_: AnswerDensities | None = None

    def fit(self, evidence: Evidence, truth: Tensor) -> Self:
        """Learn from calibration evidence and the true classes (B,) int64."""
        correct = check_calibration(evidence, truth)
        self.densities_ = fit_answer_densities(evidence, correct)
        return self

    def failure_probability(self, evidence: Evidence) -> Tensor:
        """Failure score, (B, N) float64 in [0, 1]; 1 where there is no answer or no distance."""
        densities = self._fitted()
        check_evidence(evidence, len(densities.right))
        at = densities.log_at(evidence.distance)
        score = failure_score(self.form, trust(self.form, at.right, at.wrong))
        return torch.where(usable_distances(evidence), score, 1.0)

    def state(self) -> dict[str, Tensor]:
        """What was learned, as named tensors."""
        return self._fitted().state()

    def with_state(self, state: dict[str, Tensor]) -> Self:
        """Take back what `state` returned; returns itself."""
        check_state(self, state, AnswerDensities.state_names())
        self.densities_ = AnswerDensities.from_state(state)
        return self

    def _fitted(self) -> AnswerDensities:
        if self.densities_ is None:
            raise NotFittedError(
                "this DistanceOnlyPredictor was not fitted yet; call fit(evidence, truth) or with_state(state) first"
            )
        return self.densities_


def trust(form: Form, log_right: Tensor, log_wrong: Tensor) -> Tensor:
    """The published trust in a version: larger is better.

    Args:
        form: which.
        log_right: log density among right answers, any shape, float64, -inf for zero.
        log_wrong: log density among wrong answers, the same shape.
    """
    if form == "v1":
        return log_right.exp() - log_wrong.exp()
    if form == "v2":
        return logistic(torch.nan_to_num(log_right - log_wrong, nan=0.0, posinf=torch.inf, neginf=-torch.inf))
    if form == "v3":
        return log_right.exp()
    return 1 - log_wrong.exp()


def failure_score(form: Form, values: Tensor) -> Tensor:
    """The score in [0, 1] of trusts of any shape, float64, by the table of `DistanceOnlyPredictor`."""
    if form == "v1":
        return (1 - _compressed(values)) / 2
    if form == "v2":
        return 1 - values
    if form == "v3":
        return 1 - _compressed(values)
    return (1 - values) / (2 - values)


def _compressed(values: Tensor) -> Tensor:
    size = (values.abs().log() - _LOG_SMALLEST) / _LOG_RANGE
    return values.sign() * size.clamp(0, 1)
