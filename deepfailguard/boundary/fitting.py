"""Fitting the estimators that learn from a search, with the cache as memory."""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, Self, cast

from torch import Tensor, nn

from deepfailguard.boundary.base import DistanceEstimator
from deepfailguard.boundary.cache import CachedDistance
from deepfailguard.boundary.weights_check import WeightsCheck
from deepfailguard.data.hashing import image_hashes
from deepfailguard.errors import DeepfailguardError
from deepfailguard.identity import describe, digest, rebuild
from deepfailguard.store import load_json, save_json

__all__ = ["LearningDistance", "fitted", "needs_teacher"]

logger = logging.getLogger(__name__)


class LearningDistance(DistanceEstimator, Protocol):
    """An estimator that learns from a search, for each version. It is a dataclass whose arguments include these two.

    Attributes:
        teacher: the search.
        versions: what was learned, by the fingerprints of the versions' weights; `identity.describe` can tell it.
    """

    teacher: DistanceEstimator
    versions: Mapping[str, Any]

    def fit(self, model: nn.Module, images: Tensor) -> Self:
        """A copy that knows this version too."""
        ...

    def of_version(self, fingerprint: str) -> Self:
        """A copy that knows this version alone."""
        ...


def fitted(
    estimator: DistanceEstimator,
    model: nn.Module,
    fingerprint: str,
    images: Tensor,
    cache: Path | None = None,
    name: str = "the version",
) -> DistanceEstimator:
    """The estimator, fitted to a version if it is one that learns and does not know the version yet.

    With a cache the teacher's distances are kept there, and what was learned too: fitted again with the same
    images, it is the same to the bit, so its distances are found in the cache again.

    Args:
        estimator: in the bounds of the version.
        model: the version.
        fingerprint: of the version's weights.
        images: (B, C, H, W) that it was not trained on.
        cache: folder of all caches; None keeps nothing.
        name: of the version, for the log.

    Raises:
        ConfigurationError: the fingerprint is not that of the model.
    """
    if not hasattr(estimator, "fit"):
        return estimator
    learning = cast(LearningDistance, estimator)
    if fingerprint in learning.versions:
        return estimator
    place = None if cache is None else _place(learning, fingerprint, images, cache)
    state = _kept(learning, place)
    if state is None:
        state = _learn(learning, model, fingerprint, images, cache)
        if place is not None:
            save_json(place, describe(state))
    logger.info("%s of %s (weights %s): %s", type(learning).__name__, name, fingerprint[:16], state)
    return cast(DistanceEstimator, _with(learning, versions={**learning.versions, fingerprint: state}))


def needs_teacher(estimator: DistanceEstimator, fingerprint: str, images: Tensor, cache: Path) -> bool:
    """Whether `fitted` with the same arguments would search.

    Args:
        estimator: in the bounds of the version.
        fingerprint: of the version's weights.
        images: (B, C, H, W) that it was not trained on.
        cache: folder of all caches.
    """
    if not hasattr(estimator, "fit"):
        return False
    learning = cast(LearningDistance, estimator)
    return (
        fingerprint not in learning.versions and _kept(learning, _place(learning, fingerprint, images, cache)) is None
    )


def _learn(learning: LearningDistance, model: nn.Module, fingerprint: str, images: Tensor, cache: Path | None) -> Any:
    WeightsCheck(fingerprint).check(model)  # before a search that may take hours
    if cache is None:
        return learning.fit(model, images).versions[fingerprint]
    with CachedDistance(learning.teacher, cache, fingerprint, progress="distances to learn from") as teacher:
        return _with(learning, teacher=teacher).fit(model, images).versions[fingerprint]


def _place(learning: LearningDistance, fingerprint: str, images: Tensor, cache: Path) -> Path:
    """A file whose name tells the settings (without what is known of other versions), the version and the images."""
    content = hashlib.sha256(b"".join(image_hashes(images))).hexdigest()
    key = digest([describe(_with(learning, versions={})), fingerprint, content])
    return cache / "learned" / f"{fingerprint[:16]}-{key[:32]}.json"


def _kept(learning: LearningDistance, place: Path | None) -> Any:
    if place is None or not place.is_file():
        return None
    package = type(learning).__module__.partition(".")[0]  # it runs already: no file makes us import another
    try:
        return rebuild(load_json(place), ("deepfailguard", package))
    # Another release may have renamed a class (DeepfailguardError) or its fields (TypeError), or refuse its values.
    except (DeepfailguardError, TypeError, ValueError) as error:
        logger.warning("%s cannot be used: %s; it will be learned again", place, error)
        return None


def _with(learning: LearningDistance, **changes: Any) -> LearningDistance:
    return cast(LearningDistance, replace(cast(Any, learning), **changes))
