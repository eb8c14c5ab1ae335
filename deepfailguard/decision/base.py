"""The protocol of every rule that turns several answers into one."""

from typing import Protocol

from torch import Tensor

from deepfailguard.types import Decision

__all__ = ["ClassDecisionRule", "DecisionRule", "Rule"]


class DecisionRule(Protocol):
    """A pure function; `functools.partial` sets its options."""

    def __call__(self, labels: Tensor, failure_probability: Tensor) -> Decision:
        """Decide from labels (B, N) int64, -1 for no answer, and failure probabilities (B, N) in [0, 1]."""
        ...


class ClassDecisionRule(Protocol):
    """A rule that wants the probability of every class as well, from predictors that tell it."""

    def __call__(self, labels: Tensor, failure_probability: Tensor, *, class_probability: Tensor) -> Decision:
        """Decide from labels (B, N) int64, failure probabilities (B, N) and class probabilities (B, K) in [0, 1]."""
        ...


Rule = DecisionRule | ClassDecisionRule
"""What a guard can be given as its decision."""
