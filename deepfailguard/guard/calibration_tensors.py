"""What a guard learned from, and its canary, as named tensors and back."""

from collections.abc import Sequence

from torch import Tensor

from deepfailguard.guard.calibration import Basis, Calibration, Service
from deepfailguard.guard.canary import Canary
from deepfailguard.predictor.states import below, under
from deepfailguard.types import Evidence, Rehearsed

__all__ = [
    "calibration_of",
    "calibration_tensors",
    "canary_of",
    "canary_tensors",
    "service_of",
    "service_tensors",
]


def calibration_tensors(calibration: Calibration) -> dict[str, Tensor]:
    """Everything, under names that begin with ``calibration`` and ``rehearsed``."""
    tensors = under("calibration", _tensors(calibration.evidence, truth=calibration.truth, images=calibration.images))
    rehearsed = calibration.rehearsed
    if rehearsed is None:
        return tensors
    return tensors | under("rehearsed", _tensors(rehearsed.evidence, truth=rehearsed.truth, source=rehearsed.source))


def calibration_of(tensors: dict[str, Tensor]) -> Calibration:
    """Take back what `calibration_tensors` returned."""
    usual, changed = below("calibration", tensors), below("rehearsed", tensors)
    rehearsed = Rehearsed(_evidence(changed), changed["truth"], changed["source"]) if changed else None
    return Calibration(_evidence(usual), usual["truth"], usual["images"], rehearsed)


def service_tensors(service: Service | None) -> dict[str, Tensor]:
    """Everything but fingerprints and basis, under names that begin with ``service``; nothing if there is none."""
    if service is None:
        return {}
    return under("service", _tensors(service.evidence, truth=service.truth, images=service.images))


def service_of(tensors: dict[str, Tensor], fingerprints: Sequence[str], basis: Basis) -> Service:
    """Take back what `service_tensors` returned."""
    found = below("service", tensors)
    return Service(_evidence(found), found["truth"], found["images"], tuple(fingerprints), basis)


def canary_tensors(canary: Canary) -> dict[str, Tensor]:
    """Everything."""
    return {"images": canary.images, "logits": canary.logits}


def canary_of(tensors: dict[str, Tensor]) -> Canary:
    """Take back what `canary_tensors` returned."""
    return Canary(tensors["images"], tensors["logits"])


def _tensors(evidence: Evidence, **others: Tensor) -> dict[str, Tensor]:
    tensors = {"labels": evidence.labels, "distance": evidence.distance, "found": evidence.found, **others}
    optional = {"logits": evidence.logits, "stability": evidence.stability}
    tensors |= {name: tensor for name, tensor in optional.items() if tensor is not None}
    return tensors | under("features", {str(n): each for n, each in enumerate(evidence.features or ())})


def _evidence(tensors: dict[str, Tensor]) -> Evidence:
    features = below("features", tensors)
    return Evidence(
        tensors["labels"],
        tensors["distance"],
        tensors["found"],
        tensors.get("logits"),
        tuple(features[str(number)] for number in range(len(features))) or None,
        tensors.get("stability"),
    )
