"""The protocol of everything that tells how probably a version is wrong."""

from typing import ClassVar, Protocol, Self, runtime_checkable

from torch import Tensor

from deepfailguard.types import Evidence, Need, Rehearsed

__all__ = ["ClassPredictor", "FailurePredictor", "RehearsingPredictor", "SettlingPredictor"]


class FailurePredictor(Protocol):
    """Learns on calibration data how evidence and wrong answers go together.

    `fit` learns into attributes that end in ``_``; `state` and `with_state` carry them to disk and back.

    Attributes:
        judges_alone: whether a version's failure probability depends on its own evidence only, so that
            fitting on many versions and selecting columns equals fitting on the selected ones.
    """

    judges_alone: ClassVar[bool]

    @property
    def needs(self) -> frozenset[Need]:
        """What evidence must hold besides the labels; what nobody needs is not computed."""
        ...

    def fit(self, evidence: Evidence, truth: Tensor) -> Self:
        """Learn from calibration evidence and the true classes (B,) int64."""
        ...

    def failure_probability(self, evidence: Evidence) -> Tensor:
        """P(version's answer is wrong | evidence), (B, N) float64 in [0, 1]; 1 where there is no answer."""
        ...

    def state(self) -> dict[str, Tensor]:
        """What was learned, as named tensors."""
        ...

    def with_state(self, state: dict[str, Tensor]) -> Self:
        """Take back what `state` returned; returns itself."""
        ...


@runtime_checkable
class ClassPredictor(Protocol):
    """A failure predictor that knows more: how probable each class is."""

    def class_probability(self, evidence: Evidence) -> Tensor:
        """P(truth is class k | evidence), (B, K) float64; each row sums to 1."""
        ...


@runtime_checkable
class RehearsingPredictor(Protocol):
    """A failure predictor that also learns from changed calibration inputs.

    Attributes:
        rehearse: so many inputs of each kind of change, at most; 0 for none.
    """

    rehearse: int

    def fit(self, evidence: Evidence, truth: Tensor, rehearsed: Rehearsed | None = None) -> Self:
        """Learn from calibration evidence, the true classes (B,) int64, and evidence on changed inputs."""
        ...


@runtime_checkable
class SettlingPredictor(Protocol):
    """A failure predictor that tells after each version whether a further one is needed."""

    def is_settled(self, evidence: Evidence, stage: int) -> Tensor:
        """(B,) bool, whether the answers of the first `stage` versions need no further one.

        Args:
            evidence: of these versions.
            stage: in [1, N].
        """
        ...
