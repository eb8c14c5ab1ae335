"""A small regressor from logits and features to the logarithm of a boundary distance.

It is built like the quantity itself: each class has a margin, and a slope at which the margin falls; the distance is
the smallest of margin over slope. The margins are read from the logits, the slopes are what is learned.
"""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deepfailguard.boundary.estimates.logits import leads
from deepfailguard.errors import CorruptFileError

__all__ = ["Inputs", "Parameters", "predict", "read_inputs"]

_SMALLEST_LEAD: Final = 1e-6
_FAR: Final = 40.0  # log lead of the answer over itself: no weight in the smallest, and no infinity in gradients
_SHARPNESS: Final = 20.0  # of the soft minimum over classes
_LARGEST: Final = 1e15  # of what is seen: its square is still a number
_MOST_LEADS: Final = 9  # sorted leads that the regressor sees
_MOST_SPREADS: Final = 6.0  # an input further from the mean is cut off: no estimate shall explode on strange images


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the regressor sees of B answers.

    Attributes:
        rows: (B, D) float32, finite where the logits and features are.
        log_leads: (B, K) float32, logarithms of the answer's leads.
        labels: (B,) int64 in [0, K).
    """

    rows: Tensor
    log_leads: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor) -> "Inputs":
        return Inputs(self.rows[index], self.log_leads[index], self.labels[index])

    @classmethod
    def concatenate(cls, parts: "Sequence[Inputs]") -> "Inputs":
        """Several batches as one."""
        return cls(
            torch.cat([part.rows for part in parts]),
            torch.cat([part.log_leads for part in parts]),
            torch.cat([part.labels for part in parts]),
        )

    def to(self, device: torch.device) -> "Inputs":
        """The same on a device."""
        return Inputs(self.rows.to(device), self.log_leads.to(device), self.labels.to(device))


def read_inputs(logits: Tensor, features: Tensor) -> Inputs:
    """Inputs of the regressor.

    Args:
        logits: (B, K), K >= 2.
        features: (B, F), F >= 0.

    Example:
        >>> read_inputs(torch.tensor([[2.0, 1.0, 0.0]]), torch.ones(1, 4)).rows.shape
        torch.Size([1, 15])
    """
    wide, labels = logits.float(), logits.argmax(1)
    features = features.float().clamp(-_LARGEST, _LARGEST)
    log_leads = leads(wide, labels).clamp_min(_SMALLEST_LEAD).log().clamp_max(_FAR)
    others = wide.scatter(1, labels[:, None], -math.inf)
    soft = wide.gather(1, labels[:, None]) - others.logsumexp(1, keepdim=True)
    probability = wide.softmax(1)
    rows = [
        log_leads.topk(min(_MOST_LEADS, logits.shape[1] - 1), dim=1, largest=False).values,
        soft,
        -(probability * probability.clamp_min(1e-12).log()).sum(1, keepdim=True).clamp_min(1e-12).log(),
        F.one_hot(labels, logits.shape[1]).float(),
        wide - wide.mean(1, keepdim=True),
        features,
        features.norm(dim=1, keepdim=True).clamp_min(1e-12).log(),
    ]
    return Inputs(torch.cat(rows, 1).clamp(-_LARGEST, _LARGEST), log_leads, labels)


@dataclass(frozen=True, slots=True)
class Parameters:
    """What was learned, M networks of D inputs, H hidden units and K classes; all float32.

    Attributes:
        centre: (D,) subtracted from the inputs.
        spread: (D,) > 0, the inputs are divided by it.
        shift: () log distance of a lead of one.
        pairs: (K, K) log distance per lead from each answer to each rival; (1, 1) where there are too many.
        first, first_bias: (M, D, H), (M, 1, H).
        second, second_bias: (M, H, H), (M, 1, H).
        last, last_bias: (M, H, K), (M, 1, K).
    """

    centre: Tensor
    spread: Tensor
    shift: Tensor
    pairs: Tensor
    first: Tensor
    first_bias: Tensor
    second: Tensor
    second_bias: Tensor
    last: Tensor
    last_bias: Tensor

    def to(self, device: torch.device) -> "Parameters":
        """The same on a device."""
        return Parameters(**{name: tensor.to(device) for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """All by name."""
        return {name: getattr(self, name) for name in self.__slots__}

    def to_text(self) -> dict[str, str]:
        """Each tensor as ``SHAPE:BASE64`` of little-endian float32, for JSON."""
        return {name: _to_text(tensor) for name, tensor in self.tensors().items()}

    @classmethod
    def from_text(cls, text: Mapping[str, str]) -> Self:
        """What `to_text` wrote.

        Raises:
            CorruptFileError: it is something else.
        """
        try:
            return cls(**{name: _from_text(tensor) for name, tensor in text.items()})
        except (ValueError, TypeError) as error:
            raise CorruptFileError(f"this is no learned distance: {error}; fit it again") from error


def predict(parameters: Parameters, inputs: Inputs, keep: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Log distances (M, B), one row for each network.

    Args:
        parameters: on the inputs' device.
        inputs: of B answers.
        keep: masks (M, B, H) of the two hidden layers, in training only.
    """
    rows = ((inputs.rows - parameters.centre) / parameters.spread).clamp(-_MOST_SPREADS, _MOST_SPREADS)
    hidden = F.silu(torch.baddbmm(parameters.first_bias, rows.expand(len(parameters.first), -1, -1), parameters.first))
    hidden = hidden if keep is None else hidden * keep[0]
    hidden = F.silu(torch.baddbmm(parameters.second_bias, hidden, parameters.second))
    hidden = hidden if keep is None else hidden * keep[1]
    slopes = torch.baddbmm(parameters.last_bias, hidden, parameters.last)
    pairs = parameters.pairs[inputs.labels % len(parameters.pairs)]  # (B, K), or (B, 1) if all pairs share one
    per_class = inputs.log_leads + parameters.shift + pairs + slopes
    return -torch.logsumexp(-_SHARPNESS * per_class, dim=2) / _SHARPNESS


def _to_text(tensor: Tensor) -> str:
    content = tensor.detach().cpu().contiguous().numpy().astype("<f4").tobytes()
    return "x".join(map(str, tensor.shape)) + ":" + base64.b64encode(content).decode("ascii")


def _from_text(text: str) -> Tensor:
    shape, _, content = text.partition(":")
    numbers = np.frombuffer(base64.b64decode(content, validate=True), "<f4").astype(np.float32)
    return torch.from_numpy(numbers).reshape([int(size) for size in shape.split("x")] if shape else [])
