"""Gathering calibration evidence, and checking that the calibration data can teach something."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from deepfailguard.boundary.base import DistanceEstimator
from deepfailguard.boundary.cache import CachedDistance
from deepfailguard.boundary.fitting import fitted
from deepfailguard.boundary.searching import for_version
from deepfailguard.data.base import ImageSet
from deepfailguard.errors import ConfigurationError, DataFormatError, WrongOutputError
from deepfailguard.faults.rehearsal import Rehearsal
from deepfailguard.guard.asking import Answers, ask, evidence_of, piece_size
from deepfailguard.guard.saved import GuardCard
from deepfailguard.progress import track
from deepfailguard.types import Bounds, Evidence, Need, Rehearsed
from deepfailguard.versions.version import Version

__all__ = [
    "check_inside",
    "check_labels",
    "estimator_for",
    "fit_to_loaded",
    "gather",
    "make_card",
    "rehearsed_evidence",
]


_FEW = 100  # below, an error rate of 5 % shows in five images or none

logger = logging.getLogger(__name__)


def fit_to_loaded(
    versions: Sequence[Version], distance: DistanceEstimator | None, images: Tensor, cache: Path | None
) -> DistanceEstimator | None:
    """The estimator, fitted to every loaded version where it is one that learns from a search."""
    if distance is None or not hasattr(distance, "fit"):
        return distance
    for version in versions:
        if cache is not None:
            _check_weights(version)
        distance = fitted(distance, version.model, version.fingerprint, images, cache)
    return distance


def estimator_for(version: Version, distance: DistanceEstimator | None, cache: Path | None) -> DistanceEstimator | None:
    """The estimator that a version is asked with: what it learned of this version alone, cached if there is a cache."""
    if distance is None:
        return None
    distance = for_version(distance, version.fingerprint)
    if cache is None:
        return distance
    _check_weights(version)
    return CachedDistance(distance, cache, version.fingerprint)


def _check_weights(version: Version) -> None:
    if not version.model.state_dict():
        raise ConfigurationError(
            f"distances of version {version.name!r} cannot be cached: it has no weights to know it by; leave out cache"
        )


def gather(
    versions: Sequence[Version],
    estimators: Sequence[DistanceEstimator | None],
    images: Tensor,
    needs: frozenset[Need],
) -> Evidence:
    """Evidence of all versions on calibration images, with progress.

    Raises:
        WrongOutputError: a version fails on an image; a guard must not be fitted on half of its evidence.
    """
    pairs = zip(versions, estimators, strict=True)
    try:
        return evidence_of([_ask_all(*pair, images, "features" in needs) for pair in pairs], needs)
    finally:
        for estimator in estimators:
            if isinstance(estimator, CachedDistance):
                estimator.close()  # what was computed is kept, whatever happened


def _ask_all(version: Version, estimator: DistanceEstimator | None, images: Tensor, features: bool) -> Answers:
    pieces = images.split(piece_size(estimator))
    answered = []
    for piece in track(pieces, len(pieces), f"asking {version.name}"):
        answers = ask(version, estimator, piece, features)
        if not answers.health.healthy:
            raise WrongOutputError(
                f"version {version.name!r} fails on calibration data: {answers.health.problem}; "
                "repair it or leave it out"
            )
        answered.append(answers)
    return Answers.concatenate(answered)


def rehearsed_evidence(
    versions: Sequence[Version], data: ImageSet, rehearsal: Rehearsal, bounds: Bounds, needs: frozenset[Need]
) -> Rehearsed:
    """What the versions say to changed calibration images.

    A version that fails on changed images is no reason to give up: it has no answer there, and that is learned.
    """
    changed = rehearsal.apply(data.images, bounds, seed=0)
    source = torch.cat([each.source for each in changed])
    images = torch.cat([each.images for each in changed])
    pieces = images.split(piece_size(None))
    answers = []
    for version in versions:
        parts = [ask(version, None, p, "features" in needs) for p in track(pieces, len(pieces), _rehearsing(version))]
        answers.append(Answers.concatenate(parts))
    return Rehearsed(evidence_of(answers, needs), data.labels.cpu()[source], source)


def _rehearsing(version: Version) -> str:
    return f"rehearsing with {version.name}"


def make_card(
    versions: Sequence[Version], classes: tuple[str, ...], bounds: Bounds, data: ImageSet, correct: Tensor
) -> GuardCard:
    """The card of a guard that is fitted on evidence of which `correct` (B, N) tells what was right."""
    return GuardCard(
        classes=classes,
        bounds=bounds,
        names=tuple(version.name for version in versions),
        fingerprints=tuple(version.fingerprint for version in versions),
        cards=tuple(version.card for version in versions),
        calibration_accuracy=tuple(correct.double().mean(0).tolist()),
        calibration_size=len(correct),
        calibration_fingerprint=data.fingerprint,
        input_shape=data.image_shape,
    )


def check_inside(images: Tensor, bounds: Bounds) -> None:
    """Refuse calibration images that are none, not finite or not in the bounds."""
    if len(images) == 0:
        raise DataFormatError(
            "calibration data are empty; a guard needs labelled images that no version was trained on"
        )
    if len(images) < _FEW:
        logger.warning("%d calibration images are few: failure probabilities learned on them are rough", len(images))
    outside = bounds.outside(images)
    if outside.any():
        raise DataFormatError(
            f"{int(outside.sum())} of {len(images)} calibration images (the first is number "
            f"{int(outside.nonzero()[0])}) have values that are NaN or outside [{bounds.low}, {bounds.high}]; "
            "scale them or pass bounds=Bounds(low, high)"
        )


def check_labels(labels: Tensor, classes: int) -> None:
    """Refuse labels for which no version has an output."""
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise DataFormatError(f"calibration labels span {low}..{high}, but the versions answer for {classes} classes")
