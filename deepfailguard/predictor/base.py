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
        judges_alone: whether a version's failure probability depends on its own evidence only, so that
            fitting on many versions and selecting columns equals fitting on the selected ones.
    """

    needs_distances: ClassVar[bool]
    judges_alone: ClassVar[bool]

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
