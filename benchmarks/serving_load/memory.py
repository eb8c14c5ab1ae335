"""What a process occupies over time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.stats import theilslopes

__all__ = ["Growth", "Sample", "growth_of"]

_WARM: Final = 0.2  # of the requests: until all that is made once has been made
_END: Final = 0.1
_MIB: Final = 1 << 20
_PER: Final = 10_000
_FEWEST: Final = 5_000  # requests: before that everything still warms up


@dataclass(frozen=True, slots=True)
class Sample:
    """What was occupied at a time.

    Attributes:
        requests: that had been made until then.
        bytes: occupied.
    """

    requests: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Growth:
    """How memory grew once it was warm. All sizes are MiB.

    Attributes:
        warm: occupied when a fifth of the requests had been made.
        total: more than that in the end.
        slope: more for every 10,000 requests: the median of the slopes between all samples (Theil and Sen).
        largest: occupied at any time.
    """

    warm: float
    total: float
    slope: float
    largest: float


def growth_of(samples: Sequence[Sample]) -> Growth:
    """The growth after the first fifth of the requests; NaN if there were fewer than 5,000.

    >>> round(growth_of([Sample(100 * n, (100 << 20) + n * 10_000) for n in range(100)]).slope, 3)
    0.954
    """
    requests = np.array([sample.requests for sample in samples], dtype=float)
    sizes = np.array([sample.bytes for sample in samples], dtype=float) / _MIB
    late = requests >= _WARM * requests.max(initial=0)
    requests, warm = requests[late], sizes[late]
    if requests.max(initial=0) < _FEWEST:
        return Growth(float("nan"), float("nan"), float("nan"), float(sizes.max(initial=0)))
    few = max(1, round(_END * len(warm)))
    slope = float(theilslopes(warm, requests).slope) * _PER
    first, last = float(np.median(warm[:few])), float(np.median(warm[-few:]))
    return Growth(first, last - first, slope, float(sizes.max()))
