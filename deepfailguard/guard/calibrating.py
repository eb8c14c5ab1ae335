"""Gathering calibration evidence, and checking that the calibration data can teach something."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from deepfailguard.boundary.base import DistanceEstimator
from deepfailguard.boundary.cache import CachedDistance
from deepfailguard.boundary.fitting import fitted
from deepfailguard.boundary.search.estimator import BoundarySearch
from deepfailguard.boundary.searching import for_version
from deepfailguard.data.base import ImageSet
from deepfailguard.errors import ConfigurationError, DataFormatError, WrongOutputError
from deepfailguard.faults.rehearsal import Rehearsal
from deepfailguard.guard.asking import Answers, ask, evidence_of, piece_size
from deepfailguard.guard.calibration import Calibration, hashes_of
from deepfailguard.guard.saved import GuardCard
from deepfailguard.predictor.base import FailurePredictor, RehearsingPredictor
from deepfailguard.progress import track
from deepfailguard.types import Bounds, Evidence, Need, Rehearsed
from deepfailguard.versions.version import Version

__all__ = [
    "ask_everything",
    "calibrate",
    "check_inside",
    "check_labels",
    "distance_for",
    "estimator_for",
    "fit_to_loaded",
    "make_card",
]


_FEW = 100  # below, an error rate of 5 % shows in five images or none

logger = logging.getLogger(__name__)


def distance_for(
    predictor: FailurePredictor, distance: DistanceEstimator | None, bounds: Bounds
) -> DistanceEstimator | None:
    """What tells boundary distances: nothing to a predictor that needs none, the balanced search if none was given."""
    if "distances" not in predictor.needs:
        return None
    return distance if distance is not None else BoundarySearch(low=bounds.low, high=bounds.high)


def fit_to_loaded(
    versions: Sequence[Version], distance: DistanceEstimator | None, images: Tensor, cache: Path | None
) -> DistanceEstimator | None:
    """The estimator, fitted to every loaded version where it is one that learns from a search."""
    if distance is None or not hasattr(distance, "fit"):
        return distance
    for version in versions:
        if cache is not None:
            _check_weights(version)
        distance = fitted(distance, version.model, version.fingerprint, images, cache, version.name)
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


def calibrate(
    versions: Sequence[Version],
    estimators: Sequence[DistanceEstimator | None],
    data: ImageSet,
    predictor: FailurePredictor,
    bounds: Bounds,
) -> Calibration:
    """Everything that a predictor may learn from calibration images; it rehearses if that is its way.

    Raises:
        WrongOutputError: a version fails on a calibration image.
    """
    if len(data) < _FEW:
        logger.warning("%d calibration images are few: failure probabilities learned on them are rough", len(data))
    try:
        evidence = _gather(versions, estimators, data.images, predictor.needs)
        rehearsed = None
        if isinstance(predictor, RehearsingPredictor) and predictor.rehearse:
            rehearsal = Rehearsal(inputs=predictor.rehearse)
            rehearsed = _rehearse(versions, estimators, data, rehearsal, bounds, predictor.needs)
    finally:
        for estimator in estimators:
            if isinstance(estimator, CachedDistance):
                estimator.close()  # what was computed is kept, whatever happened
    return Calibration(evidence, data.labels.cpu(), hashes_of(data.images), rehearsed)


def _gather(
    versions: Sequence[Version],
    estimators: Sequence[DistanceEstimator | None],
    images: Tensor,
    needs: frozenset[Need],
) -> Evidence:
    """Evidence of all versions on calibration images, with progress.

    Raises:
        WrongOutputError: a version fails on an image; a guard must not be fitted on half of its evidence.
    """
    answers = []
    for version, estimator in zip(versions, estimators, strict=True):
        pieces = images.split(piece_size(estimator))
        parts = (ask(version, estimator, piece, needs) for piece in pieces)
        answers.append([_sound(part) for part in track(parts, len(pieces), f"asking {version.name}")])
    return evidence_of([Answers.concatenate(parts) for parts in answers], needs)


def _sound(answers: Answers) -> Answers:
    if not answers.health.healthy:
        raise WrongOutputError(
            f"version {answers.health.name!r} fails on calibration data: {answers.health.problem}; "
            "repair it or leave it out"
        )
    return answers


def ask_everything(
    version: Version, estimator: DistanceEstimator | None, images: Tensor, needs: frozenset[Need]
) -> Answers:
    """A version's answers to images in pieces; what it fails on it does not answer."""
    pieces = images.split(piece_size(estimator))
    return Answers.concatenate([ask(version, estimator, piece, needs) for piece in pieces])


def _rehearse(
    versions: Sequence[Version],
    estimators: Sequence[DistanceEstimator | None],
    data: ImageSet,
    rehearsal: Rehearsal,
    bounds: Bounds,
    needs: frozenset[Need],
) -> Rehearsed:
    """What the versions say to changed calibration images.

    A version that fails on changed images is no reason to give up: it has no answer there, and that is learned.
    """
    pairs = list(zip(versions, estimators, strict=True))
    answers, sources = [], []
    for changed in track(rehearsal.apply(data.images, bounds, seed=0), len(rehearsal.kinds), "rehearsing"):
        answers.append([ask_everything(*pair, changed.images, needs) for pair in pairs])
        sources.append(changed.source)
    source = torch.cat(sources)
    joined = [Answers.concatenate(parts) for parts in zip(*answers, strict=True)]
    return Rehearsed(evidence_of(joined, needs), data.labels.cpu()[source], source)


def make_card(
    versions: Sequence[Version], classes: tuple[str, ...], bounds: Bounds, data: ImageSet, calibration: Calibration
) -> GuardCard:
    """The card of a guard that learns from what the versions said to the calibration data."""
    correct = calibration.evidence.labels == calibration.truth[:, None]
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


def check_inside(images: Tensor, bounds: Bounds, what: str) -> None:
    """Refuse images that are none, not finite or not in the bounds.

    Raises:
        DataFormatError: they are.
    """
    if len(images) == 0:
        raise DataFormatError(f"{what} data are empty; a guard needs labelled images that no version was trained on")
    outside = bounds.outside(images)
    if outside.any():
        raise DataFormatError(
            f"{int(outside.sum())} of {len(images)} {what} images (the first is number "
            f"{int(outside.nonzero()[0])}) have values that are NaN or outside [{bounds.low}, {bounds.high}]; "
            "scale them or pass bounds=Bounds(low, high)"
        )


def check_labels(labels: Tensor, classes: int, what: str) -> None:
    """Refuse labels for which no version has an output.

    Raises:
        DataFormatError: there are such labels.
    """
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise DataFormatError(f"{what} labels span {low}..{high}, but the versions answer for {classes} classes")
