"""From several scores of an answer, some of them missing, to the probability that it is wrong."""

from dataclasses import dataclass, replace
from typing import Final, Literal

import torch
from torch import Tensor

__all__ = ["Calibrator", "ScoreModel", "fit_score_model"]

Calibrator = Literal["logistic", "isotonic"]

_SMALLEST: Final = 1e-9  # spread below which a score is constant
_ITERATIONS: Final = 200


@dataclass(frozen=True, slots=True)
class ScoreModel:
    """A logistic regression on S standardised scores and on which of them are missing.

    Attributes:
        low: (S,) float64, the smallest score among calibration answers; smaller ones count as it.
        high: (S,) float64, the largest.
        mean: (S,) float64.
        scale: (S,) float64 > 0.
        slope: (2 S,) float64, of the standardised scores, then of what is missing.
        offset: () float64.
        steps: (T, 2) float64, log odds and what they were worth in calibration, both rising; (0, 2) for as they are.
        answers: () float64, n, how many calibration answers it learned from.
    """

    low: Tensor
    high: Tensor
    mean: Tensor
    scale: Tensor
    slope: Tensor
    offset: Tensor
    steps: Tensor
    answers: Tensor

    def __call__(self, scores: Tensor) -> Tensor:
        """P(wrong) of scores (B, S), NaN where missing: (B,) float64 in [1 / (n + 2), (n + 1) / (n + 2)]."""
        log_odds = self.log_odds(scores)
        probability = _interpolated(log_odds, self.steps) if len(self.steps) else log_odds.sigmoid()
        return (self.answers * probability + 1) / (self.answers + 2)

    def log_odds(self, scores: Tensor) -> Tensor:
        """What the regression says, (B,) float64."""
        # Multiplied and summed instead of a matrix product: the same for an input alone and among others.
        return (self._columns(scores) * self.slope).sum(1) + self.offset

    def _columns(self, scores: Tensor) -> Tensor:
        missing = scores.isnan()
        standard = (scores.clamp(self.low, self.high) - self.mean) / self.scale
        return torch.cat([torch.where(missing, 0.0, standard), missing.double()], 1)


def fit_score_model(scores: Tensor, wrong: Tensor, kind: Calibrator, penalty: float) -> ScoreModel:
    """Learn from n calibration answers; n may be 0.

    Where all answers were right, or all wrong, the model tells the smoothed error (wrong + 1) / (n + 2) of any answer.

    Args:
        scores: (n, S) float64, NaN where missing.
        wrong: (n,) bool.
        kind: "isotonic" sets a monotone step function (pool adjacent violators) upon the regression's log odds.
        penalty: > 0 on half the squared slopes.
    """
    none = torch.zeros((), dtype=torch.float64)
    model = ScoreModel(
        *_ranges(scores),
        slope=torch.zeros(2 * scores.shape[1], dtype=torch.float64),
        offset=none,
        steps=torch.zeros(0, 2, dtype=torch.float64),
        answers=none + len(wrong),
    )
    if bool(wrong.all()) or not bool(wrong.any()):
        return replace(model, offset=none + (torch.inf if bool(wrong.any()) else -torch.inf))
    slope, offset = _regressed(model._columns(scores), wrong, penalty)
    model = replace(model, slope=slope, offset=offset)
    return model if kind == "logistic" else replace(model, steps=_steps(model.log_odds(scores), wrong))


def _ranges(scores: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Smallest, largest, mean and deviation (S,) of what is not missing; 0, 0, 0 and 1 where everything is."""
    known = ~scores.isnan()
    count = known.sum(0)
    if len(scores) == 0:
        zeros = scores.new_zeros(scores.shape[1])
        return zeros, zeros, zeros, zeros + 1
    low = torch.where(known, scores, torch.inf).amin(0)
    high = torch.where(known, scores, -torch.inf).amax(0)
    mean = torch.where(known, scores, 0.0).sum(0) / count.clamp_min(1)
    spread = (torch.where(known, scores - mean, 0.0).square().sum(0) / count.clamp_min(1)).sqrt()
    none = count == 0
    scale = torch.where(spread > _SMALLEST, spread, 1.0)
    return torch.where(none, 0.0, low), torch.where(none, 0.0, high), mean, scale


def _regressed(columns: Tensor, wrong: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    from sklearn.linear_model import LogisticRegression  # heavy: only who fits pays for it

    model = LogisticRegression(C=1 / penalty, max_iter=_ITERATIONS).fit(columns.numpy(), wrong.numpy())
    return torch.from_numpy(model.coef_[0]), torch.tensor(float(model.intercept_[0]), dtype=torch.float64)


def _steps(log_odds: Tensor, wrong: Tensor) -> Tensor:
    from sklearn.isotonic import IsotonicRegression

    model = IsotonicRegression(y_min=0.0, y_max=1.0).fit(log_odds.numpy(), wrong.double().numpy())
    ends = (model.X_thresholds_, model.y_thresholds_)
    return torch.stack([torch.from_numpy(end).double() for end in ends], 1)


def _interpolated(at: Tensor, steps: Tensor) -> Tensor:
    """The value at (B,) of a line through points (T, 2), T >= 1; beyond its ends that of the nearer end."""
    where, value = steps[:, 0].contiguous(), steps[:, 1]
    if len(where) == 1:
        return value.expand(len(at))
    inside = at.clamp(where[0], where[-1])
    right = torch.searchsorted(where, inside).clamp(1, len(where) - 1)
    share = (inside - where[right - 1]) / (where[right] - where[right - 1])
    return (1 - share) * value[right - 1] + share * value[right]
