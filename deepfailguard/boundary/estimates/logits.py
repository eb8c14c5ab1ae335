"""What every estimate reads from logits: who answered, and by how much the answer leads."""

import math

import torch
from torch import Tensor

from deepfailguard.types import NO_ANSWER, Distances

__all__ = ["leads", "to_distances"]


def leads(logits: Tensor, labels: Tensor) -> Tensor:
    """By how much the answer's logit leads each other one: (B, K) float32 >= 0, infinite for the answer itself.

    Args:
        logits: (B, K), of any floating point type.
        labels: (B,) int64 in [0, K), the largest logit of each row.

    Example:
        >>> leads(torch.tensor([[3.0, 1.0]]), torch.tensor([0]))
        tensor([[inf, 2.]])
    """
    wide = logits.float()
    return (wide.gather(1, labels[:, None]) - wide).scatter(1, labels[:, None], math.inf)


def to_distances(logits: Tensor, size: Tensor) -> Distances:
    """Records on the CPU of estimated distances.

    The label is -1 where a logit is not finite. An estimate exists where the version answered, there is a second
    class, and the size is a finite number >= 0; elsewhere `found` is False and the size 0.

    Args:
        logits: (B, K).
        size: (B,) floating point, NaN or infinite where there is no estimate.

    Example:
        >>> to_distances(torch.tensor([[3.0, 1.0]]), torch.tensor([0.5])).found
        tensor([True])
    """
    answered = logits.isfinite().all(1)
    size = size.float()
    found = answered & size.isfinite() & (size >= 0) & (logits.shape[1] > 1)
    labels = torch.where(answered, logits.argmax(1), NO_ANSWER)
    return Distances(labels.cpu(), torch.where(found, size, 0.0).cpu(), found.cpu())
