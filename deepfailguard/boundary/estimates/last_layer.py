"""The last-layer distance: how far the features are from another answer. One forward pass, no gradient."""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from deepfailguard.boundary.counts import check_count
from deepfailguard.boundary.estimates.chunks import in_chunks
from deepfailguard.boundary.estimates.logits import leads, to_distances
from deepfailguard.errors import ConfigurationError
from deepfailguard.types import Bounds, Distances
from deepfailguard.versions.tapping import tapped

__all__ = ["LastLayerDistance"]


@dataclass(frozen=True, slots=True)
class LastLayerDistance:
    """The exact distance in the space of the last layer's inputs: min over j of (f_y - f_j) / |W_y - W_j|.

    Its unit is that of the features, not of the images; `CalibratedDistance` puts it on a search's scale. For a
    model that is one affine layer both are the same and the distance is exact (but for the bounds). The last layer is
    a linear one, or a 1x1 convolution whose mean over the image is the logits.

    `found` says that an estimate exists (finite logits, classes with different weights), not that a boundary point
    was seen.

    Attributes:
        batch_size: images per chunk; another size changes results by rounding only.
        low: smallest value of an input.
        high: largest value of an input.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> LastLayerDistance()(model, torch.full((2, 1, 2, 2), 0.5)).size.shape
        torch.Size([2])
    """

    batch_size: int = 256
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        check_count("batch_size", self.batch_size, least=1)
        Bounds(self.low, self.high)  # raises if they do not fit

    @property
    def bounds(self) -> Bounds:
        """The range of input values."""
        return Bounds(self.low, self.high)

    def with_bounds(self, bounds: Bounds) -> Self:
        """A copy for a data set with these bounds."""
        return replace(self, low=bounds.low, high=bounds.high)

    def __call__(self, model: nn.Module, x: Tensor) -> Distances:
        """Estimates for inputs (B, ...) on any device; where logits are not finite the label is -1.

        Raises:
            ConfigurationError: no linear layer makes the model's logits.
            DataFormatError: an input is not finite or not in the bounds.
            WrongOutputError: the model does not return logits (B, K).
        """
        return in_chunks(model, x, self.bounds, self.batch_size, lambda chunk: _estimate(model, chunk))


@torch.no_grad()
def _estimate(model: nn.Module, x: Tensor) -> Distances:
    tap = tapped(model, x)
    if tap.weight is None:
        raise ConfigurationError(
            "expected a model whose logits are the output of its last linear layer (or the mean of its last 1x1 "
            f"convolution), found none in this {type(model).__name__}; take FirstOrderDistance or LearnedDistance"
        )
    labels = tap.logits.argmax(1)
    lead = leads(tap.logits, labels)
    apart = _apart(tap.weight)[labels]
    return to_distances(tap.logits, torch.where(apart > 0, lead / apart, torch.inf).amin(1))


def _apart(weight: Tensor) -> Tensor:
    """Euclidean distances between the rows: (K, F) to (K, K) float32."""
    wide = weight.float()
    return torch.cdist(wide, wide, compute_mode="donot_use_mm_for_euclid_dist")
