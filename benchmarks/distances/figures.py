"""From times and distances to the figures of a table."""

from dataclasses import dataclass

import torch
from scipy.stats import spearmanr
from torch import Tensor

from benchmarks.distances.timing import Trace
from deepfailguard.types import Distances

__all__ = ["Quality", "Range", "Row", "quality_of", "range_of", "rank_correlation", "rows_of"]


@dataclass(frozen=True, slots=True)
class Range:
    """A median with the values that one in ten lies below and above.

    Attributes:
        middle: the median.
        low: 10 % quantile.
        high: 90 % quantile.
    """

    middle: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Quality:
    """Distances beside a reference's, on the images of which both have one.

    Attributes:
        images: how many these are.
        median: of the ratios to the reference; below 1 is nearer to the boundary.
        p5: 5 % quantile.
        p95: 95 % quantile.
        worst: the largest.
        failures: images where the reference found a distance and this method did not.
    """

    images: int
    median: float
    p5: float
    p95: float
    worst: float
    failures: int


@dataclass(frozen=True, slots=True)
class Row:
    """One method on one subject.

    Attributes:
        method: its name.
        fpe: time in forward passes of the same images.
        faster: how many times as fast as the reference, chunk by chunk.
        quality: beside the reference; None for estimates, which show no point beyond the boundary.
        spearman: rank correlation with `tight`; None for the methods that search.
    """

    method: str
    fpe: Range
    faster: Range
    quality: Quality | None
    spearman: float | None = None


def range_of(values: Tensor) -> Range:
    """Median and range of values (C,).

    >>> range_of(torch.arange(11.0))
    Range(middle=5.0, low=1.0, high=9.0)
    """
    low, middle, high = torch.quantile(values.double(), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)).tolist()
    return Range(round(middle, 9), round(low, 9), round(high, 9))


def quality_of(found: Distances, reference: Distances) -> Quality:
    """Distances beside a reference's on the same B images.

    >>> sizes, yes = torch.tensor([1.0, 2.0]), torch.tensor([True, True])
    >>> one, other = Distances(torch.zeros(2).long(), sizes, yes), Distances(torch.zeros(2).long(), 2 * sizes, yes)
    >>> quality_of(one, other).median
    0.5
    """
    both = found.found & reference.found & (reference.size > 0)
    failures = int((reference.found & ~found.found).sum())
    if not both.any():
        nothing = float("nan")
        return Quality(0, nothing, nothing, nothing, nothing, failures)
    ratios = found.size[both].double() / reference.size[both].double()
    p5, median, p95 = torch.quantile(ratios, torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)).tolist()
    return Quality(int(both.sum()), median, p5, p95, float(ratios.max()), failures)


def rank_correlation(estimate: Distances, searched: Distances) -> float:
    """Spearman's coefficient on the images that both have a distance of; NaN with fewer than two."""
    both = estimate.found & searched.found
    if int(both.sum()) < 2:
        return float("nan")
    return float(spearmanr(estimate.size[both].numpy(), searched.size[both].numpy()).statistic)


def rows_of(traces: dict[str, Trace], reference: str, tight: str, estimates: frozenset[str]) -> dict[str, Row]:
    """The figures of methods that were measured side by side.

    Args:
        traces: by method.
        reference: the method that the others are held against.
        tight: the method whose order of the images is that of the truth.
        estimates: the methods that show no point beyond the boundary.
    """
    yardstick = traces[reference]
    rows = {}
    for name, trace in traces.items():
        searched = name not in estimates
        rows[name] = Row(
            name,
            range_of(trace.fpe),
            range_of(yardstick.seconds / trace.seconds),
            quality_of(trace.distances, yardstick.distances) if searched else None,
            None if searched else rank_correlation(trace.distances, traces[tight].distances),
        )
    return rows
