"""A guard where an ordinary classifier is expected."""

import torch
from torch import Tensor, nn

__all__ = ["Classifier"]


class Classifier(nn.Module):
    """A guard in the shape of an ordinary classifier: images in, log-probabilities (B, K) out."""

    def __init__(self, guard: nn.Module) -> None:
        super().__init__()
        self.guard = guard

    def forward(self, images: Tensor) -> Tensor:
        """Log-probabilities (B, K) on the images' device; uniform where no version answered."""
        probabilities: Tensor = self.guard(images).probabilities
        classes = probabilities.shape[1]
        silent = probabilities.sum(1, keepdim=True) == 0
        probabilities = torch.where(silent, torch.full_like(probabilities, 1 / classes), probabilities)
        return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log().to(images)
