"""The first-order distance: the answer's lead over the slope at which it falls. One forward, one backward pass."""

from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor, nn

from deepfailguard.boundary.counts import check_count
from deepfailguard.boundary.estimates.chunks import in_chunks
from deepfailguard.boundary.estimates.logits import leads, to_distances
from deepfailguard.boundary.searching import searching
from deepfailguard.errors import ConfigurationError
from deepfailguard.types import Bounds, Distances
from deepfailguard.versions.logits import as_logits

__all__ = ["FirstOrderDistance"]

_MARGINS = ("hard", "soft")


@dataclass(frozen=True, slots=True)
class FirstOrderDistance:
    """Where a model that went on as steeply as at the input would change its answer.

    The size is the lead over the second likeliest class, divided by the Euclidean length of the gradient of a
    margin: of that lead itself ("hard"), or of the answer's logit minus the log-sum-exp of all others ("soft"),
    which several close rivals pull at together. The soft margin itself would not do as the numerator: it is
    negative for every answer with a probability below one half. Bounds of the input are not taken into account.
    Exact for affine models of two classes, and otherwise where the second likeliest class is the nearest.

    `found` says that an estimate exists (finite logits, a slope that is not zero), not that a boundary point was seen.

    Attributes:
        margin: whose gradient tells the slope.
        batch_size: images per chunk; another size changes results by rounding only.
        low: smallest value of an input.
        high: largest value of an input.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> FirstOrderDistance()(model, torch.full((2, 1, 2, 2), 0.5)).size.shape
        torch.Size([2])
    """

    margin: Literal["hard", "soft"] = "hard"
    batch_size: int = 256
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if self.margin not in _MARGINS:
            raise ConfigurationError(f"margin must be one of {', '.join(_MARGINS)}, got {self.margin!r}")
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
            ConfigurationError: the model's logits have no gradient with respect to its input.
            DataFormatError: an input is not finite or not in the bounds.
            WrongOutputError: the model does not return logits (B, K).
        """
        with searching(model):
            return in_chunks(model, x, self.bounds, self.batch_size, lambda chunk: self._estimate(model, chunk))

    def _estimate(self, model: nn.Module, x: Tensor) -> Distances:
        wanting = x.clone().requires_grad_()  # made here: the chunk may be an inference tensor
        logits = as_logits(model(wanting * 1.0), len(x))  # not the leaf itself: a model may work in place
        if logits.shape[1] < 2:
            return to_distances(logits.detach(), torch.zeros(len(x), device=logits.device))
        if not logits.requires_grad:
            raise ConfigurationError(
                "the model's logits have no gradient with respect to its input (does it run under no_grad, or round?); "
                "take LastLayerDistance or LearnedDistance, which need none"
            )
        labels = logits.detach().argmax(1)
        (gradient,) = torch.autograd.grad(self._fallen(logits, labels).sum(), wanting)
        lead = leads(logits.detach(), labels).amin(1)
        slope = _length(gradient)
        return to_distances(logits.detach(), torch.where(slope > 0, lead / slope, torch.inf))

    def _fallen(self, logits: Tensor, labels: Tensor) -> Tensor:
        own = logits.gather(1, labels[:, None]).squeeze(1)
        others = logits.scatter(1, labels[:, None], -torch.inf)
        return own - (others.amax(1) if self.margin == "hard" else others.logsumexp(1))


def _length(gradient: Tensor) -> Tensor:
    """Euclidean length of each row, also where its square would underflow: (B, ...) to (B,) float32."""
    flat = gradient.flatten(1).float()
    largest = flat.abs().amax(1)
    length: Tensor = largest * (flat / torch.where(largest > 0, largest, 1.0)[:, None]).norm(dim=1)
    return length
