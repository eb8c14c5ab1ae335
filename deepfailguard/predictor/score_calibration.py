"""From log odds to probabilities: as they are, or as answers bore them out that the regression did not see."""

from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

from deepfailguard.predictor.density import logistic
from deepfailguard.predictor.states import below, record_of, tensors_of, under
from deepfailguard.predictor.venn_abers import VennAbers, fit_venn_abers

__all__ = ["Calibration", "Calibrator", "Plain", "Steps", "calibrator_from", "calibrator_state", "fit_calibrator"]

Calibration = Literal["none", "isotonic", "venn_abers"]
"""How log odds become probabilities."""


@dataclass(frozen=True, slots=True)
class Plain:
    """What the log odds say.

    Attributes:
        answers: () float64, n, how many calibration answers there were.
    """

    answers: Tensor

    def __call__(self, log_odds: Tensor) -> Tensor:
        """Probabilities (B,) float64 in [1 / (n + 2), (n + 1) / (n + 2)]."""
        return _smoothed(logistic(log_odds), self.answers)


@dataclass(frozen=True, slots=True)
class Steps:
    """What log odds were worth in calibration, on a line through T points.

    Attributes:
        log_odds: (T,) float64, rising.
        probability: (T,) float64, rising.
        answers: () float64, n.
    """

    log_odds: Tensor
    probability: Tensor
    answers: Tensor

    def __call__(self, log_odds: Tensor) -> Tensor:
        """Probabilities (B,) float64 in [1 / (n + 2), (n + 1) / (n + 2)]; beyond the ends that of the nearer end."""
        where, value = self.log_odds, self.probability
        if len(where) == 1:
            return _smoothed(value.expand(len(log_odds)), self.answers)
        inside = log_odds.clamp(where[0], where[-1])
        right = torch.searchsorted(where, inside).clamp(1, len(where) - 1)
        share = (inside - where[right - 1]) / (where[right] - where[right - 1])
        return _smoothed((1 - share) * value[right - 1] + share * value[right], self.answers)


Calibrator = Plain | Steps | VennAbers

_NAMES: Final[dict[str, type[Plain] | type[Steps] | type[VennAbers]]] = {
    "plain": Plain,
    "isotonic": Steps,
    "venn_abers": VennAbers,
}


def fit_calibrator(kind: Calibration, log_odds: Tensor, wrong: Tensor) -> Calibrator:
    """Learn from log odds (n,) float64 that were not fitted on these answers, and from which were wrong, (n,) bool."""
    answers = torch.tensor(len(wrong), dtype=torch.float64)
    if kind == "none":
        return Plain(answers)
    if kind == "venn_abers":
        return fit_venn_abers(log_odds, wrong)
    from sklearn.isotonic import IsotonicRegression  # heavy: only who fits pays for it

    model = IsotonicRegression(y_min=0.0, y_max=1.0).fit(log_odds.numpy(), wrong.double().numpy())
    where, value = (torch.from_numpy(ends).double() for ends in (model.X_thresholds_, model.y_thresholds_))
    return Steps(where, value, answers)


def calibrator_state(calibrator: Calibrator) -> dict[str, Tensor]:
    """Everything, as named tensors."""
    name = next(name for name, kind in _NAMES.items() if isinstance(calibrator, kind))
    return under(name, tensors_of(calibrator))


def calibrator_from(state: dict[str, Tensor]) -> Calibrator:
    """Take back what `calibrator_state` returned.

    Raises:
        KeyError: a tensor is missing.
    """
    found = [name for name in _NAMES if below(name, state)]
    if not found:
        raise KeyError(" or ".join(_NAMES))
    return record_of(_NAMES[found[0]], below(found[0], state))


def _smoothed(probability: Tensor, answers: Tensor) -> Tensor:
    return (answers * probability + 1) / (answers + 2)
