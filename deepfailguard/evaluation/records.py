"""What an evaluation is given: arrays and names, never models."""

from dataclasses import dataclass

from torch import Tensor

from deepfailguard.types import Bounds, Decision, Evidence

__all__ = ["Evaluation", "Member"]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """An ensemble's evidence, decisions and the truth on B test inputs.

    Attributes:
        title: what was evaluated, for the report's head.
        names: the N versions.
        faults: of each version, empty string for a sound one.
        classes: K class names.
        bounds: range of the input values.
        images: (B, C, H, W) float32, for the pictures of examples.
        truth: (B,) int64.
        evidence: (B, N).
        failure_probability: (B, N) float64.
        decision: the guard's.
        calibration_accuracy: (N,) float64, of each version.
        calibration: (M, N) evidence that the predictor learned from, for the densities; None if unknown.
        calibration_truth: (M,) int64; None if unknown.
        facts: what was run with which settings, as text for the report's foot.
    """

    title: str
    names: tuple[str, ...]
    faults: tuple[str, ...]
    classes: tuple[str, ...]
    bounds: Bounds
    images: Tensor
    truth: Tensor
    evidence: Evidence
    failure_probability: Tensor
    decision: Decision
    calibration_accuracy: Tensor
    calibration: Evidence | None
    calibration_truth: Tensor | None
    facts: dict[str, str]


@dataclass(frozen=True, slots=True)
class Member:
    """A version under one condition of its test inputs, as a study combines them.

    Attributes:
        name: the version's name.
        family: its architecture; an ensemble holds each family once.
        fault: of the version or of its test inputs, empty string if sound.
        calibration: (M, 1) evidence on calibration inputs.
        test: (B, 1) evidence on test inputs, with the fault if it is one of test inputs.
        truth: (B,) int64 of these inputs; a fault may bring test inputs of its own.
    """

    name: str
    family: str
    fault: str
    calibration: Evidence
    test: Evidence
    truth: Tensor
