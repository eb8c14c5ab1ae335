"""What a guard learned from: kept, so that its predictor can be fitted anew without asking a model."""

import copy
from dataclasses import dataclass, replace
from typing import Final, Literal

import torch
from torch import Tensor

from deepfailguard.data.hashing import HASH_BYTES, image_hashes
from deepfailguard.predictor.base import FailurePredictor, RehearsingPredictor
from deepfailguard.types import Evidence, Rehearsed

__all__ = ["MAY_BE_ALIKE", "Basis", "Calibration", "Service", "hashes_of", "how_many_known", "learned", "lessons"]

MAY_BE_ALIKE: Final = 0.01
"""Share of labelled images that may equal images which a guard learned from: by nature, as blank images do."""

Basis = Literal["calibration", "calibration and service", "service"]
"""What a predictor learned from: "service" are the labelled inputs that came after calibration."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Evidence with the truth.

    Attributes:
        evidence: (B, N) on the CPU, what the predictor needs.
        truth: (B,) int64, the true classes.
        images: (B, 16) uint8, a hash of each image: nothing may be promised on images that were learned from.
        rehearsed: evidence on changed inputs; None if nothing was rehearsed.
    """

    evidence: Evidence
    truth: Tensor
    images: Tensor
    rehearsed: Rehearsed | None = None

    def of_versions(self, columns: list[int]) -> "Calibration":
        """What is known of some of the versions only."""
        changed = self.rehearsed
        rehearsed = None if changed is None else replace(changed, evidence=changed.evidence.of_versions(columns))
        return Calibration(self.evidence.of_versions(columns), self.truth, self.images, rehearsed)


@dataclass(frozen=True, slots=True)
class Service:
    """Labelled inputs that came after calibration, the newest last.

    Attributes:
        evidence: (L, N) on the CPU.
        truth: (L,) int64.
        images: (L, 16) uint8, a hash of each image: one that comes again must not count twice.
        fingerprints: N hashes of the weights that answered.
        basis: what the guard's predictor learned from.
    """

    evidence: Evidence
    truth: Tensor
    images: Tensor
    fingerprints: tuple[str, ...]
    basis: Basis

    def __len__(self) -> int:
        return len(self.truth)

    def take(self, rows: Tensor) -> "Service":
        """The inputs at these positions."""
        return replace(self, evidence=self.evidence[rows], truth=self.truth[rows], images=self.images[rows])

    def of_versions(self, columns: list[int]) -> "Service":
        """What is known of some of the versions only."""
        fingerprints = tuple(self.fingerprints[column] for column in columns)
        return replace(self, evidence=self.evidence.of_versions(columns), fingerprints=fingerprints)


def hashes_of(images: Tensor) -> Tensor:
    """A hash of each image (B, C, H, W): (B, 16) uint8."""
    hashes = [list(each) for each in image_hashes(images)]
    return torch.tensor(hashes, dtype=torch.uint8).reshape(len(images), HASH_BYTES)


def how_many_known(images: Tensor, hashes: Tensor) -> int:
    """How many of the images (B, C, H, W) are among those of the hashes (A, 16)."""
    known = {bytes(each) for each in hashes.tolist()}
    return sum(each in known for each in image_hashes(images))


def lessons(calibration: Calibration, service: Service | None, basis: Basis) -> Calibration:
    """What there is to learn from on a basis."""
    if service is None or basis == "calibration":
        return calibration
    if basis == "service":
        return Calibration(service.evidence, service.truth, service.images)
    # The calibration inputs come first: `source` of what was rehearsed counts from there.
    evidence = Evidence.concatenate([calibration.evidence, service.evidence])
    truth = torch.cat([calibration.truth, service.truth])
    return Calibration(evidence, truth, torch.cat([calibration.images, service.images]), calibration.rehearsed)


def learned(predictor: FailurePredictor, calibration: Calibration) -> FailurePredictor:
    """A copy of the predictor, fitted anew; the given one stays as it is."""
    fresh = copy.deepcopy(predictor)
    if calibration.rehearsed is not None and isinstance(fresh, RehearsingPredictor):
        return fresh.fit(calibration.evidence, calibration.truth, calibration.rehearsed)
    return fresh.fit(calibration.evidence, calibration.truth)
