"""Our searches and estimates as methods to measure."""

from typing import Final

from torch import Tensor, nn

from benchmarks.distances.timing import Method
from deepfailguard.boundary.base import DistanceEstimator
from deepfailguard.boundary.deepfool import FoolboxDeepFool
from deepfailguard.boundary.estimates.first_order import FirstOrderDistance
from deepfailguard.boundary.estimates.last_layer import LastLayerDistance
from deepfailguard.boundary.estimates.learned import LearnedDistance
from deepfailguard.boundary.search.effort import EffortName
from deepfailguard.boundary.search.estimator import BoundarySearch

__all__ = ["BALANCED", "ESTIMATES", "FAST", "LEARNED", "TIGHT", "WRAPPER", "estimates", "search", "wrapper"]

FAST: Final = "ours, fast"
BALANCED: Final = "ours, balanced"
TIGHT: Final = "ours, tight"
WRAPPER: Final = "foolbox, our wrapper"
LEARNED: Final = "LearnedDistance"
ESTIMATES: Final = ("FirstOrderDistance", "LastLayerDistance", LEARNED)

_SEARCH_REPEATS: Final = 3
_ESTIMATE_REPEATS: Final = 9


def search(effort: EffortName) -> Method:
    """Our search with one of its efforts."""
    return _method(f"ours, {effort}", BoundarySearch(effort), 1 if effort == "tight" else _SEARCH_REPEATS)


def wrapper() -> Method:
    """DeepFool by foolbox as this package calls it: with frozen parameters, and its default of 10 candidates."""
    return _method(WRAPPER, FoolboxDeepFool())


def estimates(model: nn.Module, calibration: Tensor) -> list[Method]:
    """The estimates, the learned one taught on calibration images (B, C, H, W).

    It is taught anew in each run: distances kept from an older run would be those of an older search.
    """
    learned = LearnedDistance(BoundarySearch("tight")).fit(model, calibration)
    chosen: tuple[DistanceEstimator, ...] = (FirstOrderDistance(), LastLayerDistance(), learned)
    return [
        _method(name, estimate, _ESTIMATE_REPEATS, searches=False)
        for name, estimate in zip(ESTIMATES, chosen, strict=True)
    ]


def _method(name: str, estimator: DistanceEstimator, repeats: int = 1, searches: bool = True) -> Method:
    return Method(name, estimator, repeats, searches)
