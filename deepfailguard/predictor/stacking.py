"""`StackingPredictor`: a multinomial logistic regression on what all versions hold probable."""

from dataclasses import dataclass
from typing import Any, ClassVar, Final, Self

import torch
from torch import Tensor

from deepfailguard.errors import ConfigurationError
from deepfailguard.predictor.checks import check_calibration, check_evidence, check_fitted, check_state
from deepfailguard.predictor.class_posterior import FLOOR, CalibratedSoftmax, failure_of, heard, opinion, smoothed
from deepfailguard.seeding import generator
from deepfailguard.types import Evidence, Need

__all__ = ["Regression", "StackingPredictor", "choose_penalty", "fit_regression"]

_PENALTIES: Final = (100.0, 30.0, 10.0, 3.0, 1.0)
_FOLDS: Final = 3
_FEW: Final = 10 * _FOLDS  # below so many inputs there is nothing to choose by
_ITERATIONS, _TRIAL_ITERATIONS, _STEADY = 200, 60, 1e-7


@dataclass(frozen=True, slots=True)
class Regression:
    """A multinomial logistic regression of K classes on F columns.

    Attributes:
        slope: (F, K) float64.
        offset: (K,) float64.
    """

    slope: Tensor
    offset: Tensor

    def log_probability(self, columns: Tensor) -> Tensor:
        """(B, K) float64 of columns (B, F)."""
        return (columns @ self.slope.to(columns.device) + self.offset.to(columns.device)).log_softmax(1)


class StackingPredictor:
    """Stacked generalisation (Wolpert, 1992; Ting and Witten, 1999): learn on calibration inputs whom to believe when.

    The columns are the versions' calibrated class log-probabilities, none below -12, less their mean over the classes.
    A version that did not answer (or with logits that are not finite) has zeros, which say nothing. It learns who
    mistakes what for what, and needs many calibration inputs per class for it. A class that calibration inputs do
    not show counts with one made-up input on which all versions are sure of it. No class has a probability below
    1 / (K (M + 2)) for M calibration inputs.

    Args:
        penalty: on half the squared slopes (scikit-learn's 1 / C), > 0. None: of 100, 30, 10, 3, 1 the one with the
            smallest log loss in 3-fold cross-validation; 10 below 30 calibration inputs.

    Attributes:
        softmax_: of the N versions.
        regression_: on their opinions.
        penalty_: the one used; NaN if it was taken back by `with_state`.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"logits"})
    judges_alone: ClassVar[bool] = False

    def __init__(self, penalty: float | None = None) -> None:
        if penalty is not None and not 0 < penalty < float("inf"):
            raise ConfigurationError(f"penalty must be > 0 and finite, or None to choose one, got {penalty}")
        self.penalty = penalty
        self.penalty_ = float("nan")
        self.softmax_: CalibratedSoftmax | None = None
        self.regression_: Regression | None = None

    def fit(self, evidence: Evidence, truth: Tensor) -> Self:
        """Learn from calibration evidence with logits and the true classes (B,) int64."""
        check_calibration(evidence, truth)
        self.softmax_ = softmax = CalibratedSoftmax.fit(evidence, truth)
        columns, target = _columns(softmax, evidence).cpu(), truth.cpu()
        chosen = choose_penalty(columns, target, softmax.classes) if self.penalty is None else self.penalty
        self.penalty_ = chosen
        self.regression_ = fit_regression(columns, target, softmax.classes, chosen)
        return self

    def class_probability(self, evidence: Evidence) -> Tensor:
        """P(truth is class k | evidence), (B, K) float64."""
        softmax, regression = check_fitted(self, self.softmax_), check_fitted(self, self.regression_)
        check_evidence(evidence, len(softmax.sharpness))
        return smoothed(regression.log_probability(_columns(softmax, evidence)).exp(), softmax.inputs)

    def failure_probability(self, evidence: Evidence) -> Tensor:
        """P(version's answer is wrong | evidence of all), (B, N) float64 in [0, 1]; 1 where there is no answer."""
        return failure_of(self.class_probability(evidence), evidence)

    def state(self) -> dict[str, Tensor]:
        """What was learned, as named tensors."""
        regression = check_fitted(self, self.regression_)
        softmax = check_fitted(self, self.softmax_)
        return {**softmax.state(), "slope": regression.slope, "offset": regression.offset}

    def with_state(self, state: dict[str, Tensor]) -> Self:
        """Take back what `state` returned; returns itself."""
        check_state(self, state, (*CalibratedSoftmax.STATE, "slope", "offset"))
        self.softmax_ = CalibratedSoftmax.from_state(state)
        self.regression_ = Regression(state["slope"], state["offset"])
        self.penalty_ = float("nan")
        return self


def fit_regression(
    columns: Tensor,
    truth: Tensor,
    classes: int,
    penalty: float,
    start: Regression | None = None,
    iterations: int = _ITERATIONS,
) -> Regression:
    """The regression with the smallest penalised log loss.

    Args:
        columns: (M, N K) float64, N opinions on K classes each.
        truth: (M,) int64 in [0, K).
        classes: K.
        penalty: > 0 on half the squared slopes.
        start: where to begin.
        iterations: steps of the minimiser, at most.
    """
    from scipy.optimize import minimize  # heavy: only who fits pays for it

    unseen = (torch.bincount(truth, minlength=classes) == 0).nonzero().squeeze(1)
    made_up = opinion(torch.where(torch.eye(classes, dtype=torch.bool), 0.0, FLOOR).to(columns))[unseen]
    inputs = torch.cat([columns, made_up.repeat(1, columns.shape[1] // classes)])
    target = torch.nn.functional.one_hot(torch.cat([truth, unseen]), classes).to(inputs)

    def loss(numbers: Any) -> tuple[float, Any]:
        regression = _unpacked(numbers, classes)
        told = regression.log_probability(inputs)
        excess = (told.exp() - target) / len(inputs)
        held = penalty / len(inputs) * regression.slope
        value = -(told * target).sum() / len(inputs) + (held * regression.slope).sum() / 2
        return float(value), _packed(Regression(inputs.T @ excess + held, excess.sum(0)))

    start = start or Regression(inputs.new_zeros(inputs.shape[1], classes), inputs.new_zeros(classes))
    options = {"maxiter": iterations, "ftol": _STEADY}
    return _unpacked(minimize(loss, _packed(start), jac=True, method="L-BFGS-B", options=options).x, classes)


def _packed(regression: Regression) -> Any:
    return torch.cat([regression.slope.flatten(), regression.offset]).numpy()


def _unpacked(numbers: Any, classes: int) -> Regression:
    flat = torch.from_numpy(numbers.copy())
    return Regression(flat[:-classes].view(-1, classes), flat[-classes:])


def choose_penalty(columns: Tensor, truth: Tensor, classes: int) -> float:
    """The penalty with the smallest log loss on inputs that were left out; arguments as of `fit_regression`."""
    if len(truth) < _FEW:
        return 10.0
    fold = torch.randperm(len(truth), generator=generator(0, "stacking folds")) % _FOLDS
    starts: list[Regression | None] = [None] * _FOLDS
    best, least = _PENALTIES[0], float("inf")
    for penalty in _PENALTIES:  # each fit begins where that with the stronger penalty ended
        loss = 0.0
        for number in range(_FOLDS):
            held, start = fold == number, starts[number]
            fitted = fit_regression(columns[~held], truth[~held], classes, penalty, start, _TRIAL_ITERATIONS)
            loss -= float(fitted.log_probability(columns[held]).gather(1, truth[held][:, None]).sum())
            starts[number] = fitted
        if loss >= least:
            break  # a weaker one would only fit more noise
        best, least = penalty, loss
    return best


def _columns(softmax: CalibratedSoftmax, evidence: Evidence) -> Tensor:
    """What the regression sees: (B, N K) float64."""
    said = softmax.log_probability(evidence)
    opinions = opinion(said.flatten(0, 1)).view_as(said)
    return torch.where(heard(evidence)[:, :, None], opinions, 0.0).flatten(1)
