"""What a guard learned from: kept, so that its predictor can be fitted anew without asking a model."""

import copy
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from deepfailguard.predictor.base import FailurePredictor, RehearsingPredictor
from deepfailguard.types import Evidence, Rehearsed

__all__ = ["Basis", "Calibration", "Service", "learned", "lessons"]

Basis = Literal["calibration", "calibration and service", "service"]
"""What a predictor learned from: "service" are the labelled inputs that came after calibration."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Evidence with the truth.

    Attributes:
        evidence: (B, N) on the CPU, what the predictor needs.
        truth: (B,) int64, the true classes.
        rehearsed: evidence on changed inputs; None if nothing was rehearsed.
    """

    evidence: Evidence
    truth: Tensor
    rehearsed: Rehearsed | None = None

    def of_versions(self, columns: list[int]) -> "Calibration":
        """What is known of some of the versions only."""
        changed = self.rehearsed
        rehearsed = None if changed is None else replace(changed, evidence=changed.evidence.of_versions(columns))
        return Calibration(self.evidence.of_versions(columns), self.truth, rehearsed)


@dataclass(frozen=True, slots=True)
class Service:
    """Labelled inputs that came after calibration, the newest last.

    Attributes:
        evidence: (L, N) on the CPU.
        truth: (L,) int64.
        images: (L, 16) uint8, a hash of each image: one that comes again must not count twice.
        basis: what the guard's predictor learned from.
    """

    evidence: Evidence
    truth: Tensor
    images: Tensor
    basis: Basis

    def __len__(self) -> int:
        return len(self.truth)

    def take(self, rows: Tensor) -> "Service":
        """The inputs at these positions."""
        return Service(self.evidence[rows], self.truth[rows], self.images[rows], self.basis)

    def of_versions(self, columns: list[int]) -> "Service":
        """What is known of some of the versions only."""
        return replace(self, evidence=self.evidence.of_versions(columns))


def lessons(calibration: Calibration, service: Service | None, basis: Basis) -> Calibration:
    """What there is to learn from on a basis."""
    if service is None or basis == "calibration":
        return calibration
    if basis == "service":
        return Calibration(service.evidence, service.truth)
    # The calibration inputs come first: `source` of what was rehearsed counts from there.
    evidence = Evidence.concatenate([calibration.evidence, service.evidence])
    return Calibration(evidence, torch.cat([calibration.truth, service.truth]), calibration.rehearsed)


def learned(predictor: FailurePredictor, calibration: Calibration) -> FailurePredictor:
    """A copy of the predictor, fitted anew; the given one stays as it is."""
    fresh = copy.deepcopy(predictor)
    if calibration.rehearsed is not None and isinstance(fresh, RehearsingPredictor):
        return fresh.fit(calibration.evidence, calibration.truth, calibration.rehearsed)
    return fresh.fit(calibration.evidence, calibration.truth)
