"""Figures of repeated rounds."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Spread", "failures_in_words", "spread_of"]


@dataclass(frozen=True, slots=True)
class Spread:
    """What came out in several rounds.

    Attributes:
        median: of the rounds.
        low: a tenth of them are below.
        high: a tenth of them are above.
        rounds: how many there were.
    """

    median: float
    low: float
    high: float
    rounds: int

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g} to {self.high:.3g})"


def spread_of(values: Sequence[float]) -> Spread:
    """The middle of some figures and where most of them lie; NaN where there are none.

    >>> str(spread_of([1.0, 3.0, 2.0]))
    '2 (1.2 to 2.8)'
    """
    if not values:
        return Spread(float("nan"), float("nan"), float("nan"), 0)
    low, median, high = (float(each) for each in np.quantile(values, [0.1, 0.5, 0.9]))
    return Spread(median, low, high, len(values))


def failures_in_words(failures: Counter[str], most: int = 3) -> str:
    """What came instead of answers, the most frequent first.

    >>> failures_in_words(Counter({"503": 2, "ConnectionError: closed": 7}))
    '7 x ConnectionError: closed, 2 x 503'
    """
    return ", ".join(f"{count} x {what}" for what, count in failures.most_common(most))
