"""The protocol of everything that tells a boundary distance."""

from typing import Protocol

from torch import Tensor, nn

from deepfailguard.types import Distances

__all__ = ["DistanceEstimator"]


class DistanceEstimator(Protocol):
    """Tells, for each input, how small a change flips the model's answer.

    An estimator stores its settings under the names of its constructor's arguments, since they are part
    of the cache's key. It leaves the model as it was (mode, gradients, hooks).
    """

    def __call__(self, model: nn.Module, x: Tensor) -> Distances:
        """Distances of inputs (B, C, H, W); the records are on the CPU."""
        ...
