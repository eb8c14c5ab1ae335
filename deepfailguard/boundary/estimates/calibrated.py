"""An estimate on a search's scale: a rising curve from the one to the other, learned for each version."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Self

import torch
from torch import Tensor, nn

from deepfailguard.boundary.base import DistanceEstimator
from deepfailguard.boundary.counts import check_count
from deepfailguard.boundary.estimates.monotone import Curve, fit_curve
from deepfailguard.boundary.estimates.per_version import fingerprint_of, only, state_of
from deepfailguard.boundary.estimates.quality import NO_QUALITY, EstimateQuality, check_enough, compare, warn_of_nothing
from deepfailguard.boundary.searching import check_inputs, within
from deepfailguard.errors import ConfigurationError
from deepfailguard.types import Bounds, Distances

__all__ = ["CalibratedDistance", "Calibration"]

_FEWEST: Final = 8  # images


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was learned of one version.

    Attributes:
        curve: from the estimate to the teacher's distance; None where the two have hardly an image in common.
        before: how well the estimate alone told the teacher's distance on the calibration images.
        after: how well it did so through the curve, on the same images; the curve has few knots, so this is hardly
            better than on others.
    """

    curve: Curve | None
    before: EstimateQuality
    after: EstimateQuality

    def __str__(self) -> str:
        return f"{self.after}, before calibration {self.before}"


@dataclass(frozen=True, slots=True)
class CalibratedDistance:
    """Another estimate, put on the scale of a search.

    The curve rises, so the order of the images stays as the estimate has it. It must be fitted to each version;
    `fit` returns a copy that knows the version besides those known before.

    `found` is the estimate's: it says that an estimate exists, not that a boundary point was seen.

    Attributes:
        estimate: what is put on the scale.
        teacher: the search whose scale it is.
        knots: of the curve (>= 1).
        versions: what was learned, by the fingerprints of the versions' weights.

    Example:
        >>> from deepfailguard.boundary.deepfool import FoolboxDeepFool
        >>> from deepfailguard.boundary.estimates.last_layer import LastLayerDistance
        >>> model, images = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), torch.rand(40, 1, 2, 2)
        >>> calibrated = CalibratedDistance(LastLayerDistance(), FoolboxDeepFool()).fit(model, images)
        >>> calibrated(model, images[:2]).size.shape
        torch.Size([2])
    """

    estimate: DistanceEstimator
    teacher: DistanceEstimator
    knots: int = 16
    versions: Mapping[str, Calibration] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        check_count("batch_size", self.batch_size, least=1)
        check_count("knots", self.knots, least=1)
        if hasattr(self.estimate, "fit"):
            raise ConfigurationError(
                f"expected an estimate that needs no fit, got a {type(self.estimate).__name__}, which learns a "
                "search's scale itself; use it as it is"
            )

    @property
    def batch_size(self) -> int:
        """Images per chunk: the estimate's."""
        return int(getattr(self.estimate, "batch_size", 256))

    @property
    def bounds(self) -> Bounds:
        """The range of input values: the estimate's."""
        bounds: Bounds = getattr(self.estimate, "bounds", Bounds())
        return bounds

    def with_bounds(self, bounds: Bounds) -> Self:
        """A copy for a data set with these bounds; what was learned within other bounds is forgotten."""
        estimate, teacher = within(self.estimate, bounds), within(self.teacher, bounds)
        if (estimate, teacher) == (self.estimate, self.teacher):
            return self
        return replace(self, estimate=estimate, teacher=teacher, versions={})

    def of_version(self, fingerprint: str) -> Self:
        """A copy that knows this version alone.

        Raises:
            NotFittedError: it does not know it.
        """
        return replace(self, versions=only(self.versions, fingerprint, type(self).__name__))

    def calibration(self, fingerprint: str) -> Calibration:
        """What was learned of a version, with its quality."""
        return state_of(self.versions, fingerprint, type(self).__name__)

    def fit(self, model: nn.Module, images: Tensor) -> Self:
        """Learn a version's curve.

        Of a version whose answers the teacher cannot flip nothing is learned: none of its distances will be found, and
        the log says so.

        Args:
            model: the version.
            images: (B, ...) that it was not trained on; a hundred at least.

        Returns:
            A copy that knows this version too.

        Raises:
            DataFormatError: there are fewer than eight images.
        """
        check_inputs(images, self.bounds)
        check_enough(len(images), _FEWEST)
        fingerprint = fingerprint_of(model)
        estimated, searched = self.estimate(model, images), self.teacher(model, images)
        both = estimated.found & searched.found & (estimated.size > 0) & (searched.size > 0)
        state = Calibration(None, NO_QUALITY, NO_QUALITY)
        if int(both.sum()) >= _FEWEST:
            state = self._calibrate(estimated[both], searched[both])
        else:
            warn_of_nothing(fingerprint, int(both.sum()), len(images))
        return replace(self, versions={**self.versions, fingerprint: state})

    def _calibrate(self, estimated: Distances, searched: Distances) -> Calibration:
        curve = fit_curve(estimated.size, searched.size, self.knots)
        return Calibration(curve, compare(estimated, searched), compare(_through(curve, estimated), searched))

    def __call__(self, model: nn.Module, x: Tensor) -> Distances:
        """Estimates for inputs (B, ...), as the estimate makes them, on the teacher's scale.

        Raises:
            NotFittedError: it was not fitted to a version with this model's weights.
        """
        return _through(self.calibration(fingerprint_of(model)).curve, self.estimate(model, x))


def _through(curve: Curve | None, distances: Distances) -> Distances:
    if curve is None:
        nothing = torch.zeros_like(distances.size)
        return Distances(distances.labels, nothing, nothing.bool())
    return Distances(distances.labels, curve(distances.size).nan_to_num(0.0, 0.0, 0.0), distances.found)
