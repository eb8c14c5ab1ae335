"""Venn-Abers calibration: two isotonic regressions, one for each truth that a new answer may have.

Vovk, Petej and Fedorova, "Large-scale probabilistic predictors with and without guarantees of validity", 2015.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["VennAbers", "fit_venn_abers"]

_Point = tuple[int, int]  # answers so far, and how many of them are ones


@dataclass(frozen=True, slots=True)
class VennAbers:
    """Two step functions of a score, worked out for all scores at once.

    A score s has the probabilities p0(s) <= p1(s): what isotonic regression on the n pairs of calibration says of s if
    the pair (s, 0), or (s, 1), is added to them. If a new pair is exchangeable with those, then the one of the two that
    belongs to the true outcome is perfectly calibrated, however few pairs there are.

    Attributes:
        scores: (k,) float64, the different scores of calibration, rising.
        lower: (k + 1,) float64, p0 of a score that is at or over so many of them.
        upper: (k + 1,) float64, p1 of a score that is over so many of them.
    """

    scores: Tensor
    lower: Tensor
    upper: Tensor

    def __call__(self, scores: Tensor) -> Tensor:
        """The one probability with the least regret in log loss, (B,) float64 in [1 / (n + 2), (n + 1) / (n + 2)].

        A score beyond those of calibration counts as the nearest of them. The bounds do not: beyond the highest score,
        p1 is 1. Where all scores are equal but for rounding, that would make half a failure of nothing.
        """
        known = self.scores
        lower, upper = self.bounds(scores.clamp(known[0], known[-1]) if len(known) else scores)
        return upper / (1 - lower + upper)

    def bounds(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """p0 and p1 of scores (B,) float64, each (B,) float64."""
        over = torch.searchsorted(self.scores, scores.contiguous())
        at_or_over = torch.searchsorted(self.scores, scores.contiguous(), right=True)
        return self.lower[at_or_over], self.upper[over]


def fit_venn_abers(scores: Tensor, ones: Tensor) -> VennAbers:
    """Work out both step functions of n calibration pairs in O(n log n); n may be 0.

    >>> fitted = fit_venn_abers(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([False, False, True, True]))
    >>> [round(float(each), 3) for each in fitted(torch.tensor([0.0, 2.5, 9.0]))]
    [0.25, 0.5, 0.75]

    Args:
        scores: (n,), none of them NaN.
        ones: (n,) bool, the outcomes.
    """
    different, place = scores.double().unique(return_inverse=True)
    count = torch.bincount(place, minlength=len(different))
    hits = torch.bincount(place[ones], minlength=len(different))
    upper = _with_a_one(count.tolist(), hits.tolist())
    # A zero among zeros and ones is a one among ones and zeros, seen from the other end.
    lower = _with_a_one(count.flip(0).tolist(), (count - hits).flip(0).tolist())
    steps = torch.tensor([lower[::-1], upper], dtype=torch.float64)
    return VennAbers(different, 1 - steps[0], steps[1])


def _with_a_one(count: list[int], hits: list[int]) -> list[float]:
    """What isotonic regression says at each of k scores if a one is added there; then 1.0, for beyond the last one.

    Isotonic regression is the slope of the greatest convex minorant of the points (answers, ones) summed up to each
    score. A one added at a score moves all points before it by (-1, -1). From one score to the next only one more
    point moves, and what is right of the minorant's last corner stays on a stack.
    """
    points = [(0, 0)]
    for answers, ones in zip(count, hits, strict=True):
        points.append((points[-1][0] + answers, points[-1][1] + ones))
    corners: list[_Point] = []  # of the minorant, the leftmost one on top
    for point in reversed(points[1:]):
        _push(corners, point)
    _push(corners, _moved(points[0]))
    slopes = []
    for point in points[1:]:
        (left, low), (right, high) = corners[-1], corners[-2]
        slopes.append((high - low) / (right - left))
        if _turn(corners[-1], _moved(point), corners[-2]) < 0:  # else the line goes on
            corners.pop()
            _push(corners, _moved(point))
    return [*slopes, 1.0]


def _moved(point: _Point) -> _Point:
    """Where a point is once the added one comes after it."""
    return point[0] - 1, point[1] - 1


def _push(corners: list[_Point], point: _Point) -> None:
    """Put a point left of all corners; corners that are not under the line to the next one are none any more."""
    while len(corners) > 1 and _turn(point, corners[-1], corners[-2]) >= 0:
        corners.pop()
    corners.append(point)


def _turn(start: _Point, middle: _Point, end: _Point) -> int:
    """> 0 where the middle is over the line from start to end, < 0 where it is under it."""
    along = (end[0] - start[0], end[1] - start[1])
    return (middle[1] - start[1]) * along[0] - along[1] * (middle[0] - start[0])
