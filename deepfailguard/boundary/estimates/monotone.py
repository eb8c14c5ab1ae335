"""A rising curve through pairs of positive numbers: isotonic regression in log-log, reduced to a few knots."""

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.isotonic import IsotonicRegression
from torch import Tensor

__all__ = ["Curve", "fit_curve"]

_LEAST_SLOPE = 1e-2  # of the curve: where isotonic regression is flat, the order of the estimates must survive


@dataclass(frozen=True, slots=True)
class Curve:
    """Straight lines in log-log between knots, and lines of slope one beyond the ends: far out, distances scale.

    Attributes:
        x: logarithms at which the knots are, rising.
        y: logarithms of the values there, rising.

    Example:
        >>> Curve((0.0, 1.0), (1.0, 2.0))(torch.tensor([0.0, 1.0]))  # e times as much; zero stays zero
        tensor([0.0000, 2.7183])
    """

    x: tuple[float, ...]
    y: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "x", tuple(self.x))  # JSON knows lists only
        object.__setattr__(self, "y", tuple(self.y))

    def __call__(self, size: Tensor) -> Tensor:
        """Map sizes (B,) >= 0; the order of any two is kept, but for rounding."""
        x, y = torch.tensor(self.x, dtype=torch.float64), torch.tensor(self.y, dtype=torch.float64)
        at = size.double().log()
        right = torch.searchsorted(x, at.contiguous()).clamp(1, max(len(x) - 1, 1))
        if len(x) == 1:
            return (at + (y[0] - x[0])).exp().to(size.dtype)
        slope = (y[right] - y[right - 1]) / (x[right] - x[right - 1])
        inside = y[right - 1] + slope * (at - x[right - 1])
        mapped = torch.where(at < x[0], at + (y[0] - x[0]), torch.where(at > x[-1], at + (y[-1] - x[-1]), inside))
        return mapped.exp().to(size.dtype)


def fit_curve(estimated: Tensor, searched: Tensor, knots: int) -> Curve:
    """The rising curve that tells `searched` from `estimated` best, in squares of log distances.

    Args:
        estimated: (n,) > 0, n >= 1.
        searched: (n,) > 0.
        knots: at most this many, each for an equal share of the pairs.
    """
    x, y = estimated.double().log().numpy(), searched.double().log().numpy()
    order = np.argsort(x, kind="stable")
    risen = IsotonicRegression().fit_transform(x[order], y[order])
    shares = np.array_split(np.arange(len(x)), max(1, min(knots, len(x) // 4)))
    return _rising(
        [float(x[order][share].mean()) for share in shares], [float(risen[share].mean()) for share in shares]
    )


def _rising(x: list[float], y: list[float]) -> Curve:
    """Leave out knots at the same place, and lift those that do not lie above the one before."""
    places, values = x[:1], y[:1]
    for place, value in zip(x[1:], y[1:], strict=True):
        if place > places[-1]:
            values.append(max(value, values[-1] + _LEAST_SLOPE * (place - places[-1])))
            places.append(place)
    return Curve(tuple(places), tuple(values))
