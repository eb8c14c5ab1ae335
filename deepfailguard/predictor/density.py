"""Gaussian kernel density estimates of numbers on a line, in log space.

Log space needs no special case far from every point, where the densities themselves underflow to zero
and their ratio is undefined.
"""

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from deepfailguard.errors import ConfigurationError

__all__ = ["MIN_POINTS", "Density", "fit_density", "log_density", "logistic", "scott_bandwidth"]

MIN_POINTS: Final = 2  # one point has no standard deviation, so no bandwidth
_SMALLEST_BANDWIDTH = 1e-4  # as a share of the range of all distances of a version
_PAIRS_AT_ONCE = 1 << 21  # points times queries in memory at once: 16 MiB of float64


@dataclass(frozen=True, slots=True)
class Density:
    """A kernel density estimate.

    Attributes:
        points: (n,) float64, finite; n = 0 means that the density could not be estimated.
        bandwidth: standard deviation of the kernel, > 0.
    """

    points: Tensor
    bandwidth: float

    def __post_init__(self) -> None:
        if self.points.ndim != 1 or not bool(torch.isfinite(self.points).all()):
            raise ConfigurationError(
                f"a density needs finite points of shape (n,), got shape {tuple(self.points.shape)}; "
                "leave out distances that were not found"
            )
        if not (math.isfinite(self.bandwidth) and self.bandwidth > 0):
            raise ConfigurationError(f"a density needs a finite bandwidth > 0, got {self.bandwidth}")

    @property
    def known(self) -> bool:
        """Whether there were points to estimate it from."""
        return len(self.points) > 0


def scott_bandwidth(points: Tensor) -> float:
    """Scott's rule, as in `scipy.stats.gaussian_kde`: n^(-1/5) times the standard deviation (ddof 1).

    Args:
        points: (n,) floating, n >= 2.

    >>> round(scott_bandwidth(torch.tensor([0.0, 1.0])), 6)
    0.615572
    """
    if len(points) < MIN_POINTS:
        raise ConfigurationError(f"a bandwidth needs at least {MIN_POINTS} points, got {len(points)}")
    return float(len(points) ** -0.2 * points.double().std())


def fit_density(points: Tensor, span: float) -> Density:
    """Estimate a density with Scott's bandwidth, or an unknown one from fewer than two points.

    Args:
        points: (n,) finite.
        span: range of the numbers that the density will be asked for. Equal points have the bandwidth
            zero by Scott's rule; a small share of the range keeps such a density from becoming infinite,
            and if the range is zero too, any bandwidth will do, as the density is asked for one number only.
    """
    if len(points) < MIN_POINTS:
        return Density(points.double()[:0], 1.0)
    floor = _SMALLEST_BANDWIDTH * span if span > 0 else 1.0
    return Density(points.double(), max(scott_bandwidth(points), floor))


def log_density(points: Tensor, bandwidth: float, x: Tensor) -> Tensor:
    """Logarithm of a density, the same bits for a query alone and in a batch.

    Equal to ``scipy.stats.gaussian_kde(points).logpdf(x)`` for Scott's bandwidth.

    Args:
        points: (n,) float64, n >= 1.
        bandwidth: > 0.
        x: (B,) float64, finite, on the same device.

    Returns:
        (B,) float64.
    """
    if len(points) == 0:
        raise ConfigurationError("a density needs at least one point, got none; check Density.known first")
    rows = max(2, _PAIRS_AT_ONCE // len(points))
    constant = math.log(len(points) * bandwidth * math.sqrt(2 * math.pi))
    pieces = [_log_kernel_sum(points, bandwidth, piece) for piece in x.split(rows)]
    return torch.cat(pieces) - constant


def _log_kernel_sum(points: Tensor, bandwidth: float, x: Tensor) -> Tensor:
    # torch shares the sum of a single row among threads, in another order than the sums of several rows.
    queries = x.repeat(2) if len(x) == 1 else x
    scaled = (queries[:, None] - points) / bandwidth
    return torch.logsumexp(scaled.square_().mul_(-0.5), dim=1)[: len(x)]


def logistic(log_odds: Tensor) -> Tensor:
    """Probability of log odds, any shape, also infinite.

    Not `torch.sigmoid`, whose last bit depends on where in the tensor a number stands: an input must be judged
    alike alone, in a batch and from a cache.

    >>> logistic(torch.tensor([-torch.inf, 0.0, torch.inf])).tolist()
    [0.0, 0.5, 1.0]
    """
    return 1 / (1 + torch.exp(-log_odds))
