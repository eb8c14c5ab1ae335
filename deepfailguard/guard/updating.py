"""Learning from labelled inputs of service: is what was calibrated still the best, or do these inputs teach better?"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, get_args

import torch
from torch import Tensor

from deepfailguard.boundary.base import DistanceEstimator
from deepfailguard.data.base import ImageSet
from deepfailguard.errors import DataFormatError
from deepfailguard.guard.answering import checked_images
from deepfailguard.guard.asking import evidence_of
from deepfailguard.guard.calibrating import ask_everything, check_inside, check_labels
from deepfailguard.guard.calibration import MAY_BE_ALIKE, Basis, Service, hashes_of, how_many_known, learned, lessons
from deepfailguard.guard.canary import retaken_canary
from deepfailguard.guard.judging import option_of
from deepfailguard.guard.saved import SavedGuard
from deepfailguard.guard.turns import in_turns
from deepfailguard.identity import weights_fingerprint
from deepfailguard.predictor.base import ClassPredictor, FailurePredictor
from deepfailguard.predictor.class_posterior import FLOOR
from deepfailguard.seeding import generator
from deepfailguard.types import Evidence
from deepfailguard.versions.version import Version

__all__ = ["Update", "checked_labelled", "retaken", "service_evidence", "updated", "with_canary"]

_FOLDS: Final = 4
_LEAST: Final = 8  # labelled inputs below which nothing can be shown
_SHOWN: Final = 2.0  # standard errors by which the loss must be smaller: by one it is in every sixth case by chance
_KEPT: Final = 5000  # labelled inputs, the newest ones

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Update:
    """What labelled inputs of service changed.

    Attributes:
        chosen: what the guard's predictor learned from.
        losses: mean log loss on the labelled inputs of a predictor that learned from each, in cross-validation;
            empty where there are too few inputs to tell.
        inputs: how many labelled inputs there are so far that the versions answered with their present weights.
    """

    chosen: Basis
    losses: Mapping[Basis, float]
    inputs: int

    def __str__(self) -> str:
        if not self.losses:
            return f"learned from {self.chosen}, as before: {self.inputs} labelled inputs show nothing, give {_LEAST}"
        told = ", ".join(f"{loss:.3f} from {basis}" for basis, loss in self.losses.items())
        return f"learned from {self.chosen}: log loss on {self.inputs} labelled inputs is {told}"


def checked_labelled(images: Tensor, labels: Tensor, saved: SavedGuard) -> ImageSet:
    """Labelled inputs that a guard can learn from, the newest ones if they are very many.

    Raises:
        DataFormatError: shapes or values that do not fit, or images of the calibration data.
    """
    data = ImageSet(checked_images(images, saved.card), labels)
    check_inside(data.images, saved.card.bounds, "labelled")
    check_labels(data.labels, len(saved.card.classes), "labelled")
    known = how_many_known(data.images, saved.calibration.images)
    if known > MAY_BE_ALIKE * len(data):
        raise DataFormatError(
            f"{known} of these {len(data)} images are calibration data, from which the guard learned already; "
            "give others"
        )
    return data.take(slice(-_KEPT, None))


def retaken(versions: Sequence[Version], saved: SavedGuard) -> tuple[list[Version], SavedGuard]:
    """The versions with fingerprints of the weights that they have now, and a guard that knows them by these.

    A cache would refuse, or answer for, the weights that a damaged version had before.
    """
    now = [replace(version, fingerprint=weights_fingerprint(version.model)) for version in versions]
    saved = replace(saved, card=replace(saved.card, fingerprints=tuple(version.fingerprint for version in now)))
    known = getattr(saved.distance, "versions", None)
    if not known or not hasattr(saved.distance, "of_version"):
        return now, saved
    renamed = {new.fingerprint: known[old.fingerprint] for old, new in zip(versions, now, strict=True)}
    learning: Any = saved.distance
    return now, replace(saved, distance=replace(learning, versions=renamed))


def with_canary(now: SavedGuard, versions: Sequence[Version], before: SavedGuard) -> SavedGuard:
    """The guard with canary answers of the weights that changed: it asks those versions.

    Args:
        now: what `retaken` returned.
        versions: of the guard, with their present weights.
        before: the guard as it was.
    """
    pairs = zip(now.card.fingerprints, before.card.fingerprints, strict=True)
    changed = [column for column, (new, old) in enumerate(pairs) if new != old]
    return replace(now, canary=retaken_canary(before.canary, versions, changed))


def service_evidence(
    versions: Sequence[Version], estimators: Sequence[DistanceEstimator | None], images: Tensor, saved: SavedGuard
) -> Evidence:
    """What all versions say to images; a version that fails has no answer, which is evidence too.

    Args:
        versions: whom to ask.
        estimators: of each version.
        images: (B, C, H, W), finite and in the bounds.
        saved: the guard.
    """
    needs, usual = saved.predictor.needs, saved.calibration.evidence.features
    pairs = zip(versions, estimators, strict=True)
    evidence = evidence_of([ask_everything(*pair, images, needs) for pair in pairs], needs)
    if evidence.features is None or usual is None:
        return evidence
    return replace(evidence, features=tuple(map(_as_wide, evidence.features, usual)))


def _as_wide(features: Tensor, usual: Tensor) -> Tensor:
    """A version that answered nothing has no features; here it gets zeros, so that they can stand below others."""
    return features if features.shape[1] == usual.shape[1] else features.new_zeros(len(features), usual.shape[1])


def updated(saved: SavedGuard, now: SavedGuard, evidence: Evidence, data: ImageSet) -> tuple[SavedGuard, Update]:
    """The guard that knows these labelled inputs too, and learned from what is best for all labelled inputs so far.

    The candidates are fitted in the order of `Basis`; one is chosen in place of those before it if its mean loss on
    the labelled inputs, each judged without having learned from it, is smaller by more than two standard errors.

    Where that could be shown, or what the guard had learned is given up, it is the guard of the present weights.

    Args:
        saved: the guard.
        now: the same, but for the versions' present weights.
        evidence: on the new inputs, of the present weights.
        data: the new inputs.
    """
    service = _extended(saved.service, evidence, data, now.card.fingerprints)
    update = _compared(saved, service)
    judged = now if update.losses or update.chosen != saved.basis else saved
    predictor = saved.predictor
    if not update.chosen == saved.basis == "calibration":
        if option_of(saved.decision, "abstain_above") is not None:
            logger.warning("failure probabilities are learned anew: the threshold of the decision was found for others")
        predictor = learned(predictor, lessons(saved.calibration, service, update.chosen))
    return replace(judged, predictor=predictor, service=replace(service, basis=update.chosen)), update


def _extended(before: Service | None, evidence: Evidence, data: ImageSet, fingerprints: tuple[str, ...]) -> Service:
    """All labelled inputs that the present weights answered, the newest last; nothing learned from them yet.

    An image that came again counts once, with its last label. What other weights said is no evidence of these.
    """
    service = Service(evidence, data.labels.cpu(), hashes_of(data.images), fingerprints, "calibration")
    if before is not None and before.fingerprints != fingerprints:
        logger.warning("weights changed: %d labelled inputs that others had answered no longer count", len(before))
    elif before is not None:
        both = Evidence.concatenate([before.evidence, evidence])
        truth, images = torch.cat([before.truth, service.truth]), torch.cat([before.images, service.images])
        service = Service(both, truth, images, fingerprints, before.basis)
    last = {bytes(image): position for position, image in enumerate(service.images.tolist())}
    return service.take(torch.tensor(sorted(last.values()))[-_KEPT:])


def _compared(saved: SavedGuard, service: Service) -> Update:
    if len(service) < _LEAST:
        return Update(service.basis, {}, len(service))
    fold = torch.randperm(len(service), generator=generator(0, "update folds")) % _FOLDS
    losses: dict[Basis, Tensor] = {}
    chosen: Basis = "calibration"
    for basis in get_args(Basis):
        losses[basis] = _losses(saved, service, basis, fold)
        gain = losses[chosen] - losses[basis]
        if float(gain.mean()) > _SHOWN * float(gain.std()) / math.sqrt(len(gain)):
            chosen = basis
    return Update(chosen, {basis: float(each.mean()) for basis, each in losses.items()}, len(service))


def _losses(saved: SavedGuard, service: Service, basis: Basis, fold: Tensor) -> Tensor:
    """The loss on each labelled input, (L,) float64, of a predictor that did not learn from it."""
    if basis == "calibration":
        fitted = saved.predictor if saved.basis == basis else learned(saved.predictor, saved.calibration)
        return _loss(fitted, service.evidence, service.truth)
    losses = torch.zeros(len(service), dtype=torch.float64)
    for number in range(_FOLDS):
        held = fold == number
        rest = service.take((~held).nonzero().squeeze(1))
        fitted = learned(saved.predictor, lessons(saved.calibration, rest, basis))
        losses[held] = _loss(fitted, service.evidence[held], service.truth[held])
    return losses


def _loss(predictor: FailurePredictor, evidence: Evidence, truth: Tensor) -> Tensor:
    """Log loss (B,) float64: of the true class, or else the mean over what is said of each version's answer."""
    least = math.exp(FLOOR)  # a single answer must not decide
    seen = in_turns(evidence, predictor)
    if isinstance(predictor, ClassPredictor):
        told = predictor.class_probability(seen).gather(1, truth[:, None])
        return -told.squeeze(1).clamp_min(least).log()
    failure = predictor.failure_probability(seen)
    came = torch.where(seen.labels == truth[:, None], 1 - failure, failure)
    return -came.clamp_min(least).log().mean(1)
