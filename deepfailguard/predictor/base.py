"""The protocol of everything that tells how probably a version is wrong."""

from typing import ClassVar, Protocol, Self

from torch import Tensor

from deepfailguard.types import Evidence

__all__ = ["FailurePredictor"]


class FailurePredictor(Protocol):
    """Learns on calibration data how evidence and wrong answers go together.

    `fit` learns into attributes that end in ``_``; `state` and `with_state` carry them to disk and back.

    Attributes:
        needs_distances: whether evidence must hold boundary distances; the costly searches are left out if not.
    """

    needs_distances: ClassVar[bool]

    def fit(self, evidence: Evidence, correct: Tensor) -> Self:
        """Learn from calibration evidence and whether each answer was right, (B, N) bool."""
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
