"""The protocol of every rule that turns several answers into one."""

from typing import Protocol

from torch import Tensor

from deepfailguard.types import Decision

__all__ = ["DecisionRule"]


class DecisionRule(Protocol):
    """A pure function; `functools.partial` sets its options."""

    def __call__(self, labels: Tensor, failure_probability: Tensor) -> Decision:
        """Decide from labels (B, N) int64, -1 for no answer, and failure probabilities (B, N) in [0, 1]."""
        ...
