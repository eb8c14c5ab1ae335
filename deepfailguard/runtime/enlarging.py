"""A guard with one version more, without asking those that it has."""

from dataclasses import replace

import torch
from torch import Tensor

from deepfailguard.data.base import ImageSet
from deepfailguard.errors import ConfigurationError
from deepfailguard.guard.calibrating import calibrate, estimator_for, fit_to_loaded, make_card
from deepfailguard.guard.calibration import Calibration, learned
from deepfailguard.guard.canary import Canary, recorded
from deepfailguard.guard.saved import SavedGuard
from deepfailguard.types import Evidence, Rehearsed
from deepfailguard.versions.version import Version

__all__ = ["enlarged"]


def enlarged(saved: SavedGuard, version: Version, data: ImageSet) -> SavedGuard:
    """The guard with one more version, learned on the calibration inputs; only the newcomer is asked.

    Args:
        saved: the guard of N versions.
        version: the newcomer, which nobody else uses meanwhile.
        data: the inputs that the guard was calibrated on, in the same order.

    Raises:
        ConfigurationError: other inputs than the guard learned from, or it learned from labelled inputs of service too.
        WrongOutputError: the newcomer fails on one of them.
    """
    _check_nothing_lost(saved, version.name)
    card = saved.card
    if data.fingerprint != card.calibration_fingerprint:
        raise ConfigurationError(
            f"{version.name!r} must be calibrated on the {card.calibration_size} images that the guard was fitted on, "
            f"in their order; got {len(data)} others. Or fit a new guard of all versions"
        )
    distance = fit_to_loaded([version], saved.distance, data.images, None)
    estimator = estimator_for(version, distance, None)
    heard = calibrate([version], [estimator], data, saved.predictor, card.bounds)
    both = _beside(saved.calibration, heard)
    own = make_card([version], card.classes, card.bounds, data, heard)
    whole = replace(
        card,
        names=(*card.names, version.name),
        fingerprints=(*card.fingerprints, version.fingerprint),
        cards=(*card.cards, version.card),
        calibration_accuracy=(*card.calibration_accuracy, *own.calibration_accuracy),
    )
    canary = saved.canary
    if canary is not None:
        told = recorded(version, canary.images)[:, None]
        canary = Canary(canary.images, torch.cat([canary.logits, told], 1))
    predictor = learned(saved.predictor, both)
    return SavedGuard(whole, predictor, saved.decision, distance, both, canary=canary)


def _check_nothing_lost(saved: SavedGuard, name: str) -> None:
    """Refuse a guard that learned from inputs which the newcomer did not answer, and which are not kept."""
    if saved.service is not None and saved.basis != "calibration":
        raise ConfigurationError(
            f"what the guard learned from {len(saved.service)} labelled inputs of service (by `update`) would be lost: "
            f"{name!r} was not asked these, and their images are not kept. Fit a guard of all versions anew and "
            "`update` it, or calibrate in a runtime of the guard as it was before `update`"
        )


def _beside(known: Calibration, heard: Calibration) -> Calibration:
    """Calibration evidence of N versions and of one more on the same inputs."""
    rehearsed = known.rehearsed
    if rehearsed is not None and heard.rehearsed is not None:
        rehearsed = Rehearsed(_columns(rehearsed.evidence, heard.rehearsed.evidence), rehearsed.truth, rehearsed.source)
    return Calibration(_columns(known.evidence, heard.evidence), known.truth, known.images, rehearsed)


def _columns(left: Evidence, right: Evidence) -> Evidence:
    """The columns of both, (B, N + 1)."""

    def joined(one: Tensor | None, other: Tensor | None) -> Tensor | None:
        return None if one is None or other is None else torch.cat([one, other], 1)

    features = None if left.features is None or right.features is None else (*left.features, *right.features)
    return Evidence(
        torch.cat([left.labels, right.labels], 1),
        torch.cat([left.distance, right.distance], 1),
        torch.cat([left.found, right.found], 1),
        joined(left.logits, right.logits),
        features,
        joined(left.stability, right.stability),
    )
