"""From several scores of an answer, some of them missing, to the probability that it is wrong."""

from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

from deepfailguard.predictor.score_calibration import (
    Calibration,
    Calibrator,
    Plain,
    calibrator_from,
    calibrator_state,
    fit_calibrator,
)
from deepfailguard.predictor.states import below, record_of, tensors_of, under
from deepfailguard.predictor.trees import Trees, fit_trees
from deepfailguard.seeding import generator

__all__ = ["Linear", "Regression", "ScoreModel", "Standard", "fit_score_model"]

Regression = Literal["logistic", "boosting"]
"""What turns standardised scores into log odds."""

_SMALLEST: Final = 1e-9  # spread below which a score is constant
_ITERATIONS: Final = 200
_FOLDS: Final = 5


@dataclass(frozen=True, slots=True)
class Standard:
    """What makes columns of S scores: standardised ones, and which are missing.

    Attributes:
        low: (S,) float64, the smallest score among calibration answers; smaller ones count as it.
        high: (S,) float64, the largest.
        mean: (S,) float64.
        scale: (S,) float64 > 0.
    """

    low: Tensor
    high: Tensor
    mean: Tensor
    scale: Tensor

    def __call__(self, scores: Tensor) -> Tensor:
        """Columns (B, 2 S) float64 of scores (B, S), NaN where missing: 0 there, and 1 in the second half."""
        missing = scores.isnan()
        standard = (scores.clamp(self.low, self.high) - self.mean) / self.scale
        return torch.cat([torch.where(missing, 0.0, standard), missing.double()], 1)


@dataclass(frozen=True, slots=True)
class Linear:
    """A logistic regression.

    Attributes:
        slope: (2 S,) float64, of the columns.
        offset: () float64.
    """

    slope: Tensor
    offset: Tensor

    def __call__(self, columns: Tensor) -> Tensor:
        """Log odds (B,) float64 of columns (B, 2 S) float64."""
        # Multiplied and summed instead of a matrix product: the same for an input alone and among others.
        return (columns * self.slope).sum(1) + self.offset


@dataclass(frozen=True, slots=True)
class ScoreModel:
    """A regression on S scores and on which of them are missing, and what its log odds are worth."""

    standard: Standard
    regression: Linear | Trees
    calibrator: Calibrator

    def __call__(self, scores: Tensor) -> Tensor:
        """P(wrong) of scores (B, S), NaN where missing: (B,) float64 in [1 / (n + 2), (n + 1) / (n + 2)]."""
        return self.calibrator(self.log_odds(scores))

    def log_odds(self, scores: Tensor) -> Tensor:
        """What the regression says, (B,) float64."""
        return self.regression(self.standard(scores))

    def state(self) -> dict[str, Tensor]:
        """Everything, as named tensors."""
        regression = under("trees" if isinstance(self.regression, Trees) else "linear", tensors_of(self.regression))
        return tensors_of(self.standard) | regression | calibrator_state(self.calibrator)

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> "ScoreModel":
        """Take back what `state` returned.

        Raises:
            KeyError: a tensor is missing.
        """
        trees = below("trees", state)
        regression = record_of(Trees, trees) if trees else record_of(Linear, below("linear", state))
        return cls(record_of(Standard, state), regression, calibrator_from(state))


def fit_score_model(
    scores: Tensor, wrong: Tensor, model: Regression, calibration: Calibration, penalty: float
) -> ScoreModel:
    """Learn from n calibration answers; n may be 0.

    A calibration learns from log odds by regressions that did not see the answer (five folds). With fewer than two
    wrong or two right answers nothing can be held out: then there is no calibration, and boosting tells the same of
    any answer. Where all answers were right, or all wrong, every model tells the smoothed error
    (wrong + 1) / (n + 2) of any answer.

    Args:
        scores: (n, S) float64, NaN where missing.
        wrong: (n,) bool.
        model: "logistic" or "boosting".
        calibration: "none", "isotonic" (pool adjacent violators) or "venn_abers".
        penalty: > 0 on half the squared slopes of the logistic regression.
    """
    standard = _standard(scores)
    columns, fold = standard(scores), _dealt(wrong)
    plain = Plain(torch.tensor(len(wrong), dtype=torch.float64))
    if fold is None:
        told = model == "logistic" and bool(wrong.any()) and not bool(wrong.all())
        return ScoreModel(standard, _linear(columns, wrong, penalty) if told else _constant(columns, wrong), plain)
    if model == "boosting":
        trees, held_out = fit_trees(columns, wrong, fold)
        return ScoreModel(standard, trees, fit_calibrator(calibration, held_out, wrong))
    linear = _linear(columns, wrong, penalty)
    if calibration == "none":
        return ScoreModel(standard, linear, plain)
    return ScoreModel(standard, linear, fit_calibrator(calibration, _held_out(columns, wrong, penalty, fold), wrong))


def _standard(scores: Tensor) -> Standard:
    """Smallest, largest, mean and deviation (S,) of what is not missing; 0, 0, 0 and 1 where everything is."""
    known = ~scores.isnan()
    count = known.sum(0)
    if len(scores) == 0:
        zeros = scores.new_zeros(scores.shape[1])
        return Standard(zeros, zeros, zeros, zeros + 1)
    low = torch.where(known, scores, torch.inf).amin(0)
    high = torch.where(known, scores, -torch.inf).amax(0)
    mean = torch.where(known, scores, 0.0).sum(0) / count.clamp_min(1)
    spread = (torch.where(known, scores - mean, 0.0).square().sum(0) / count.clamp_min(1)).sqrt()
    none = count == 0
    scale = torch.where(spread > _SMALLEST, spread, 1.0)
    return Standard(torch.where(none, 0.0, low), torch.where(none, 0.0, high), mean, scale)


def _dealt(wrong: Tensor) -> Tensor | None:
    """The fold of each of n answers: as many wrong ones in each as can be; None if a fold would have none."""
    folds = min(_FOLDS, int(wrong.sum()), int((~wrong).sum()))
    if folds < 2:
        return None
    fold, random = torch.empty(len(wrong), dtype=torch.int64), generator(0, "score model folds")
    for rows in (wrong.nonzero().squeeze(1), (~wrong).nonzero().squeeze(1)):
        fold[rows[torch.randperm(len(rows), generator=random)]] = torch.arange(len(rows)) % folds
    return fold


def _held_out(columns: Tensor, wrong: Tensor, penalty: float, fold: Tensor) -> Tensor:
    """Log odds (n,) by regressions on the other folds."""
    said = torch.empty(len(wrong), dtype=torch.float64)
    for number in range(int(fold.max()) + 1):
        out = fold == number
        said[out] = _linear(columns[~out], wrong[~out], penalty)(columns[out])
    return said


def _linear(columns: Tensor, wrong: Tensor, penalty: float) -> Linear:
    from sklearn.linear_model import LogisticRegression  # heavy: only who fits pays for it

    model = LogisticRegression(C=1 / penalty, max_iter=_ITERATIONS).fit(columns.numpy(), wrong.numpy())
    return Linear(torch.from_numpy(model.coef_[0]), torch.tensor(float(model.intercept_[0]), dtype=torch.float64))


def _constant(columns: Tensor, wrong: Tensor) -> Linear:
    """The log odds of the share of wrong answers, whatever the scores."""
    share = wrong.double().sum() / max(1, len(wrong))
    return Linear(torch.zeros(columns.shape[1], dtype=torch.float64), share.logit())
