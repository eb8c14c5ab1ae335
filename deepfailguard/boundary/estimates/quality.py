"""How well an estimate tells what a search finds."""

import logging
from dataclasses import dataclass
from typing import Final

from scipy.stats import spearmanr

from deepfailguard.errors import DataFormatError
from deepfailguard.types import Distances

__all__ = ["NO_QUALITY", "EstimateQuality", "check_enough", "compare", "warn_of_few", "warn_of_nothing"]

logger = logging.getLogger(__name__)

_FEWEST = 2
_TELLING = 10  # images: a rank correlation of fewer is mostly chance


@dataclass(frozen=True, slots=True)
class EstimateQuality:
    """An estimate beside a search, on images that both have a distance of.

    Attributes:
        images: how many these are.
        spearman: rank correlation in [-1, 1]; 0 where either distance is the same for all of them.
        error: median of |estimate - searched| / searched (>= 0).

    Example:
        >>> print(EstimateQuality(400, 0.9831, 0.061))
        Spearman 0.983, median error 6.1 % on 400 images
    """

    images: int
    spearman: float
    error: float

    def __str__(self) -> str:
        return f"Spearman {self.spearman:.3f}, median error {self.error:.1%} on {self.images} images".replace("%", " %")


NO_QUALITY: Final = EstimateQuality(0, 0.0, 0.0)


def check_enough(images: int, fewest: int) -> None:
    """Refuse fewer calibration images than anything can be learned from."""
    if images < fewest:
        raise DataFormatError(
            f"{images} calibration images are too few to learn a distance from, expected at least {fewest}; "
            "hundreds are good, thousands are better"
        )


def warn_of_nothing(fingerprint: str, found: int, images: int) -> None:
    """Say that a version teaches nothing: its answers hardly ever flip."""
    logger.warning(
        "the search found distances of %d of %d calibration images of the version %s, too few to learn from: "
        "no distance of this version will be found",
        found,
        images,
        fingerprint[:16],
    )


def warn_of_few(fingerprint: str, quality: EstimateQuality) -> None:
    """Say that a quality was measured on so few images that it tells next to nothing."""
    if quality.images < _TELLING:
        logger.warning(
            "the quality of the distances learned of the version %s was measured on %d held-out images only, so it "
            "tells next to nothing; give more calibration images (hundreds)",
            fingerprint[:16],
            quality.images,
        )


def compare(estimated: Distances, searched: Distances) -> EstimateQuality:
    """Compare an estimate with a search on the same B images.

    Raises:
        DataFormatError: fewer than two images have both distances.

    Example:
        >>> import torch
        >>> both = Distances(torch.zeros(3).long(), torch.tensor([1.0, 2.0, 4.0]), torch.ones(3).bool())
        >>> compare(both, both).spearman
        1.0
    """
    both = estimated.found & searched.found & (searched.size > 0)
    count = int(both.sum())
    if count < _FEWEST:
        raise DataFormatError(
            f"{count} of {len(both)} images have an estimated and a searched distance, expected at least {_FEWEST}; "
            "give more images, or a search that takes more steps"
        )
    one, other = estimated.size[both].double(), searched.size[both].double()
    varied = bool((one != one[0]).any() and (other != other[0]).any())
    spearman = float(spearmanr(one.numpy(), other.numpy()).statistic) if varied else 0.0
    return EstimateQuality(count, spearman, float(((one - other).abs() / other).median()))
