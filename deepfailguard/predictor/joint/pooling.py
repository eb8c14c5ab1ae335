"""Pooling opinions: from the plain mean of the versions' probabilities to stacking, as far as the data can bear.

An *opinion* on an input is a vector of K log-probabilities, less their mean. The pool of P opinions x_p is

    log q = bias + sum_p weight_p x_p + sum_p x_p C_p        (less a constant, so that q sums to 1)

The first opinion is the plain mean of the versions' probabilities, and a fit starts from it alone. With free weights
the pool is a logarithmic opinion pool, with free corrections C it is stacking by multinomial regression. The latter
needs thousands of calibration inputs before it stops doing harm; a few hundred bear only little. So there are
levels of freedom, and cross-validation chooses: a freer level must be *shown* to be better.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor

from deepfailguard.predictor.class_posterior import fit_sharpness
from deepfailguard.seeding import generator

__all__ = ["LEVELS", "Freedom", "Pool", "Trial", "chosen_of", "fit_pool", "try_levels"]


@dataclass(frozen=True, slots=True)
class Freedom:
    """How strongly each part of a pool is held at home, which is the plain mean.

    Attributes:
        weight: penalty on the squared weights' distance from home; infinite: they and the bias stay there, and only the
            sharpness of the plain mean is fitted.
        bias: penalty on the squared bias.
        correction: penalty on the squared corrections; infinite: there are none.
    """

    weight: float
    bias: float = math.inf
    correction: float = math.inf

    def __str__(self) -> str:
        if not math.isfinite(self.weight):
            return "plain mean"
        if not math.isfinite(self.correction):
            return f"weights held by {self.weight:g}"
        return f"corrections held by {self.correction:g}"


LEVELS: Final = (
    Freedom(math.inf),
    Freedom(10.0, 100.0),
    Freedom(1.0, 10.0),
    Freedom(1.0, 1.0, 300.0),
    Freedom(0.3, 0.3, 100.0),
    Freedom(0.1, 0.1, 30.0),
    Freedom(0.1, 0.1, 10.0),
    Freedom(0.1, 0.1, 3.0),
)
"""From the plain mean (only its sharpness is fitted) to stacking."""

_MOST_CORRECTIONS: Final = 200_000  # above (many classes), they would cost more than they bring
_FOLDS: Final = 3
_SHOWN: Final = 1.0  # standard errors by which a freer level's loss must be smaller
_HOPELESS: Final = 2  # so many levels with corrections in a row that are not better end the search
_ITERATIONS, _TRIAL_ITERATIONS = 60, 20  # a trial starts where the level before it ended
_STEADY: Final = 1e-6  # a smaller change of the loss ends the fit


@dataclass(frozen=True, slots=True)
class Pool:
    """A fitted pool of P opinions on K classes.

    Attributes:
        weight: (P,) float64.
        bias: (K,) float64.
        correction: (P * K, K) float64; (0, K) for none.
    """

    weight: Tensor
    bias: Tensor
    correction: Tensor

    def log_probability(self, opinions: Tensor) -> Tensor:
        """(B, K) float64 of opinions (B, P, K)."""
        if len(self.correction):  # a weight is a correction that is a multiple of the identity: one product does it
            identity = torch.eye(len(self.bias), dtype=self.bias.dtype, device=self.bias.device)
            scores = opinions.flatten(1) @ (self.correction + torch.kron(self.weight[:, None], identity))
        else:
            scores = torch.matmul(self.weight, opinions)
        return (scores + self.bias).log_softmax(1)


@dataclass(frozen=True, slots=True)
class Trial:
    """How a level did in cross-validation.

    Attributes:
        level: which one.
        loss: its mean log loss; NaN if there were too few inputs to try anything.
        gain: by how much that is less than the loss of the level taken before; NaN for the first one.
        error: standard error of the gain.
        taken: whether it took that one's place.
    """

    level: Freedom
    loss: float
    gain: float
    error: float
    taken: bool

    def __str__(self) -> str:
        if math.isnan(self.loss):
            return f"{self.level} (too few inputs to try more)"
        better = self.taken and not math.isnan(self.gain)
        return f"{self.level} {self.loss:.3f}{' (better)' if better else ''}"


def fit_pool(
    opinions: Tensor, truth: Tensor, freedom: Freedom, start: Pool | None = None, iterations: int = _ITERATIONS
) -> Pool:
    """The pool with the smallest penalised log loss.

    Args:
        opinions: (M, P, K) float64, the first of them the plain mean.
        truth: (M,) int64 in [0, K).
        freedom: what may move, and how far.
        start: where to begin, e.g. the pool of a level with less freedom.
        iterations: steps of the minimiser, at most.
    """
    _, count, classes = opinions.shape
    home = _home(count, classes, opinions)
    if not math.isfinite(freedom.weight):
        return replace(home, weight=home.weight * fit_sharpness(opinions[:, 0], truth))
    correcting = math.isfinite(freedom.correction) and _correctable(opinions)
    none = opinions.new_zeros(count * classes if correcting else 0, classes)
    home, start = replace(home, correction=none), start or home
    if len(start.correction) != len(none):
        start = replace(start, correction=none)
    penalties = (freedom.weight, freedom.bias, freedom.correction if correcting else 0.0)
    return _minimise(_PenalisedLoss(opinions, truth, home, penalties), start, iterations)


def try_levels(opinions: Tensor, truth: Tensor, levels: Sequence[Freedom] = LEVELS) -> list[Trial]:
    """Levels by cross-validation, as far as it is worth trying; the last one that is taken is the best that is shown.

    A freer level is taken where its log loss is smaller than that of the level taken before by more than one standard
    error of their difference. The first one is always taken; with a few inputs nothing else is tried.

    Args:
        opinions: (M, P, K) float64.
        truth: (M,) int64.
        levels: in this order; the first one is what is fallen back to.
    """
    if len(truth) < 4 * _FOLDS:
        return [Trial(levels[0], math.nan, math.nan, math.nan, True)]
    fold = torch.randperm(len(truth), generator=generator(0, "pool folds")).to(truth.device) % _FOLDS
    starts: list[Pool | None] = [None] * _FOLDS
    trials, least, hopeless = list[Trial](), torch.full((len(truth),), torch.nan, dtype=torch.float64), 0
    for level in levels:
        if math.isfinite(level.correction) and not _correctable(opinions):
            break
        loss = torch.zeros_like(least)
        for number in range(_FOLDS):
            held = fold == number
            starts[number] = pool = fit_pool(opinions[~held], truth[~held], level, starts[number], _TRIAL_ITERATIONS)
            loss[held] = -pool.log_probability(opinions[held]).gather(1, truth[held][:, None]).squeeze(1)
        gain, error = _mean_and_error(least - loss)
        better = not trials or gain > _SHOWN * error
        trials.append(Trial(level, float(loss.mean()), gain, error, better))
        least = loss if better else least
        hopeless = hopeless + 1 if math.isfinite(level.correction) and not better else 0
        if hopeless == _HOPELESS:
            break
    return trials


def chosen_of(trials: Sequence[Trial]) -> Freedom:
    """The level that was taken last."""
    return [trial.level for trial in trials if trial.taken][-1]


def _correctable(opinions: Tensor) -> bool:
    _, count, classes = opinions.shape
    return count * classes * classes <= _MOST_CORRECTIONS


def _mean_and_error(values: Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))


def _home(count: int, classes: int, like: Tensor) -> Pool:
    """The plain mean."""
    weight = torch.eye(count, dtype=like.dtype, device=like.device)[0]
    return Pool(weight, like.new_zeros(classes), like.new_zeros(0, classes))


class _PenalisedLoss:
    """Mean log loss of a pool, and what it costs to be away from home."""

    def __init__(self, opinions: Tensor, truth: Tensor, home: Pool, penalties: tuple[float, float, float]) -> None:
        self.opinions = opinions
        self.target = torch.nn.functional.one_hot(truth, opinions.shape[2]).to(opinions)
        self.home = home
        self.penalties = [penalty / len(truth) for penalty in penalties]

    def __call__(self, pool: Pool) -> tuple[float, Pool]:
        """The loss and its gradient."""
        log_probability = pool.log_probability(self.opinions)
        loss = -(log_probability * self.target).sum() / len(self.target)
        excess = (log_probability.exp() - self.target) / len(self.target)  # derivative by the scores
        if len(pool.correction):
            classes = excess.shape[1]
            correction = self.opinions.flatten(1).T @ excess
            weight = correction.view(-1, classes, classes).diagonal(dim1=1, dim2=2).sum(1)
        else:
            correction, weight = pool.correction, torch.einsum("bpk,bk->p", self.opinions, excess)
        slopes = (weight, excess.sum(0), correction)
        away = [there - home for there, home in zip(_parts(pool), _parts(self.home), strict=True)]
        for penalty, step in zip(self.penalties, away, strict=True):
            loss = loss + penalty * step.square().sum()
        held = [s + 2 * penalty * step for s, penalty, step in zip(slopes, self.penalties, away, strict=True)]
        return float(loss), Pool(*held)


def _minimise(loss: _PenalisedLoss, start: Pool, iterations: int) -> Pool:
    """The pool with the smallest loss, as far as so many steps lead."""

    def at(numbers: Any) -> tuple[float, Any]:
        value, slope = loss(_unpacked(numbers, start))
        return value, _packed(slope)

    from scipy.optimize import minimize  # heavy: only who fits pays for it

    options = {"maxiter": iterations, "ftol": _STEADY}
    return _unpacked(minimize(at, _packed(start), jac=True, method="L-BFGS-B", options=options).x, start)


def _parts(pool: Pool) -> tuple[Tensor, Tensor, Tensor]:
    return pool.weight, pool.bias, pool.correction


def _packed(pool: Pool) -> Any:
    return torch.cat([part.flatten() for part in _parts(pool)]).cpu().numpy()


def _unpacked(numbers: Any, like: Pool) -> Pool:
    flat = torch.as_tensor(numbers).to(like.weight, copy=True)
    pieces = flat.split([part.numel() for part in _parts(like)])
    return Pool(*(piece.view_as(part) for piece, part in zip(pieces, _parts(like), strict=True)))
