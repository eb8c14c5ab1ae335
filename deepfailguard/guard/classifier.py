"""A guard where an ordinary classifier is expected."""

import logging

import torch
from torch import Tensor, nn

__all__ = ["Classifier"]

logger = logging.getLogger(__name__)


class Classifier(nn.Module):
    """A guard in the shape of an ordinary classifier: images in, log-probabilities (B, K) out."""

    def __init__(self, guard: nn.Module) -> None:
        super().__init__()
        self.guard = guard

    def forward(self, images: Tensor) -> Tensor:
        """Log-probabilities (B, K) on the images' device; NaN where there is no answer (logged, see the verdict)."""
        probabilities: Tensor = self.guard(images).probabilities
        silent = probabilities.sum(1, keepdim=True) == 0
        if silent.any():
            logger.warning(
                "no answer for %d of %d images: call the guard itself for the reasons", silent.sum(), len(images)
            )
        probabilities = torch.where(silent, torch.nan, probabilities)
        return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log().to(images)
