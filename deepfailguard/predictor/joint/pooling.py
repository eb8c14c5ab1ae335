"""Pooling opinions: from the plain mean of the versions' probabilities to stacking, as far as the data can bear.

An *opinion* on an input is a vector of K log-probabilities, less their mean. The pool of P opinions x_p is

    log q = bias + sum_p weight_p x_p + sum_p x_p C_p        (less a constant, so that q sums to 1)

The first opinion is the plain mean of the versions' probabilities, and a fit starts from it alone. With free weights
the pool is a logarithmic opinion pool, with free corrections C it is stacking by multinomial regression. The latter
needs thousands of calibration inputs before it stops doing harm; a few hundred bear only little. So there are
levels of freedom, and cross-validation chooses: a freer level must be *shown* to be better.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from deepfailguard.seeding import generator

__all__ = ["LEVELS", "Freedom", "Pool", "choose_level", "fit_pool"]


@dataclass(frozen=True, slots=True)
class Freedom:
    """How strongly each part of a pool is held at its start; infinite: it is not fitted.

    Attributes:
        weight: penalty on the squared weights' distance from the plain mean.
        bias: penalty on the squared bias.
        correction: penalty on the squared corrections.
    """

    weight: float
    bias: float = math.inf
    correction: float = math.inf


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
        scores = torch.einsum("bpk,p->bk", opinions, self.weight) + self.bias
        if len(self.correction):
            scores = scores + opinions.flatten(1) @ self.correction
        return scores.log_softmax(1)


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
    inputs, count, classes = opinions.shape
    plain = torch.eye(count, dtype=opinions.dtype, device=opinions.device)[0]
    start = start or Pool(plain.clone(), opinions.new_zeros(classes), opinions.new_zeros(0, classes))
    correcting = math.isfinite(freedom.correction) and count * classes * classes <= _MOST_CORRECTIONS
    correction = start.correction
    if correcting and not len(correction):
        correction = opinions.new_zeros(count * classes, classes)
    parts = [
        (start.weight.clone(), plain, freedom.weight, math.isfinite(freedom.weight)),
        (start.bias.clone(), torch.zeros_like(start.bias), freedom.bias, math.isfinite(freedom.bias)),
        (correction.clone(), torch.zeros_like(correction), freedom.correction, correcting),
    ]
    free = [part for part in parts if part[3]]
    sharpness = opinions.new_ones(()).requires_grad_(not free)  # of the plain mean, the one thing that is always fitted
    for part in free:
        part[0].requires_grad_(True)

    def loss() -> Tensor:
        scores = Pool(parts[0][0] * sharpness, parts[1][0], parts[2][0]).log_probability(opinions)
        held = [penalty * (value - home).square().sum() for value, home, penalty, _ in free]
        return torch.nn.functional.nll_loss(scores, truth) + sum(held, opinions.new_zeros(())) / inputs

    _minimise(loss, [part[0] for part in free] or [sharpness], iterations)
    weight, bias, correction = (part[0].detach() for part in parts)
    return Pool(weight * sharpness.detach(), bias, correction)


def choose_level(opinions: Tensor, truth: Tensor, levels: Sequence[Freedom] = LEVELS) -> Freedom:
    """The level that cross-validation shows to be best.

    A freer level is taken where its log loss is smaller than that of the level chosen so far by more than one standard
    error of their difference.

    Args:
        opinions: (M, P, K) float64.
        truth: (M,) int64.
        levels: in this order; the first one is what is fallen back to.
    """
    if len(truth) < 4 * _FOLDS:
        return levels[0]
    fold = torch.randperm(len(truth), generator=generator(0, "pool folds")).to(truth.device) % _FOLDS
    starts: list[Pool | None] = [None] * _FOLDS
    best, least, hopeless = levels[0], torch.full((len(truth),), torch.inf, dtype=torch.float64), 0
    for level in levels:
        loss = torch.zeros_like(least)
        for number in range(_FOLDS):
            held = fold == number
            starts[number] = pool = fit_pool(opinions[~held], truth[~held], level, starts[number], _TRIAL_ITERATIONS)
            loss[held] = -pool.log_probability(opinions[held]).gather(1, truth[held][:, None]).squeeze(1)
        gain = least - loss
        better = level is levels[0] or gain.mean() > _SHOWN * gain.std() / math.sqrt(len(gain))
        best, least = (level, loss) if better else (best, least)
        hopeless = hopeless + 1 if math.isfinite(level.correction) and not better else 0
        if hopeless == _HOPELESS:
            break
    return best


def _minimise(loss: Callable[[], Tensor], parameters: list[Tensor], iterations: int) -> None:
    """Change the parameters to where the loss is smallest."""
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=iterations, history_size=20, tolerance_change=_STEADY, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(closure)
