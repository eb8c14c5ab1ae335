"""Intervals: how much of a difference, or of a share, is the luck of the test set."""

from dataclasses import dataclass
from typing import Final

import torch
from scipy.stats import beta
from torch import Tensor

from deepfailguard.errors import ConfigurationError, DataFormatError
from deepfailguard.seeding import generator

__all__ = ["Interval", "binomial_interval", "mean_interval", "paired_difference"]

_RESAMPLES: Final = 2000
_DRAWS_AT_ONCE = 1 << 21  # inputs times resamples in memory at once


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its bootstrap interval.

    Attributes:
        estimate: on the inputs as they are.
        low: lower end, <= high.
        high: upper end.
        level: share of resamples between the ends, in (0, 1).
    """

    estimate: float
    low: float
    high: float
    level: float

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside: a difference that is hardly luck."""
        return self.low > 0 or self.high < 0


def mean_interval(values: Tensor, *, seed: int, resamples: int = _RESAMPLES, level: float = 0.95) -> Interval:
    """Percentile bootstrap interval of the mean, as of an accuracy.

    Args:
        values: (B,) bool, integer or floating, one per input.
        seed: same seed, same interval.
        resamples: how often the inputs are drawn anew with replacement, >= 1.
        level: of the interval, in (0, 1).

    >>> mean_interval(torch.ones(10), seed=0)
    Interval(estimate=1.0, low=1.0, high=1.0, level=0.95)
    """
    _check(values, resamples, level)
    cpu = values.detach().cpu().double()
    means = _resampled_means(cpu, seed, resamples)
    ends = torch.quantile(means, torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64))
    return Interval(float(cpu.mean()), float(ends[0]), float(ends[1]), level)


def paired_difference(
    first: Tensor, second: Tensor, *, seed: int, resamples: int = _RESAMPLES, level: float = 0.95
) -> Interval:
    """Percentile bootstrap interval of mean(first) - mean(second), measured on the same inputs.

    Both are drawn together, so that what is easy or hard about an input cancels.

    Args:
        first: (B,) bool, integer or floating, e.g. where the guard is right.
        second: (B,), e.g. where the majority vote is right.
        seed: same seed, same interval.
        resamples: how often the inputs are drawn anew with replacement, >= 1.
        level: of the interval, in (0, 1).
    """
    if first.shape != second.shape:
        raise DataFormatError(
            f"paired values need one shape, got {tuple(first.shape)} and {tuple(second.shape)}; "
            "measure both on the same inputs in the same order"
        )
    return mean_interval(first.double() - second.double(), seed=seed, resamples=resamples, level=level)


def binomial_interval(hits: Tensor, trials: Tensor, *, level: float = 0.95) -> tuple[Tensor, Tensor]:
    """Clopper-Pearson intervals of shares: lower and upper ends, (M,) float64 in [0, 1].

    The true share lies outside with probability at most 1 - level, whatever it is.

    Args:
        hits: (M,) integers in [0, trials].
        trials: (M,) integers >= 1.
        level: in (0, 1).

    >>> low, high = binomial_interval(torch.tensor([0, 5]), torch.tensor([10, 10]))
    >>> low.round(decimals=3).tolist(), high.round(decimals=3).tolist()
    ([0.0, 0.187], [0.308, 0.813])
    """
    if not 0 < level < 1:
        raise ConfigurationError(f"level must be in (0, 1), got {level}; 0.95 is usual")
    if hits.shape != trials.shape or bool(((hits < 0) | (hits > trials) | (trials < 1)).any()):
        raise DataFormatError(f"expected 0 <= hits <= trials, trials >= 1, got {hits.tolist()} of {trials.tolist()}")
    k, n = hits.double().cpu().numpy(), trials.double().cpu().numpy()
    tail = (1 - level) / 2
    low, high = torch.from_numpy(beta.ppf(tail, k, n - k + 1)), torch.from_numpy(beta.isf(tail, k + 1, n - k))
    # With no hit, or hits only, there is no such distribution: the end is that of all shares.
    return torch.where(hits.cpu() == 0, 0.0, low), torch.where((hits == trials).cpu(), 1.0, high)


def _resampled_means(values: Tensor, seed: int, resamples: int) -> Tensor:
    random = generator(seed, "bootstrap")
    at_once = max(1, _DRAWS_AT_ONCE // len(values))
    means = []
    for start in range(0, resamples, at_once):
        shape = (min(at_once, resamples - start), len(values))
        means.append(values[torch.randint(len(values), shape, generator=random)].mean(1))
    return torch.cat(means)


def _check(values: Tensor, resamples: int, level: float) -> None:
    if values.ndim != 1 or len(values) == 0 or not bool(torch.isfinite(values).all()):
        raise DataFormatError(f"values must be finite (B,) with B >= 1, got {tuple(values.shape)}")
    if resamples < 1:
        raise ConfigurationError(f"resamples must be >= 1, got {resamples}")
    if not 0 < level < 1:
        raise ConfigurationError(f"level must be in (0, 1), got {level}; 0.95 is usual")
