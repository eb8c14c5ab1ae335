"""A small network without batch normalisation: three convolutions and a residual block."""

import torch.nn.functional as F
from torch import Tensor, nn

from mymodel.layers import initialise

__all__ = ["CompactCNN"]

_WIDTHS = (32, 64, 88)


class CompactCNN(nn.Module):
    """Images (B, channels, H, W) in [0, 1] to logits (B, classes); 0.21 M parameters.

    Args:
        channels: of the images.
        classes: K.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        first, second, last = _WIDTHS
        self.stem = nn.Sequential(
            *(nn.Conv2d(channels, first, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(first, second, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(second, last, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        )
        self.block = nn.Sequential(nn.Conv2d(last, last, 3, padding=1), nn.ReLU(), nn.Conv2d(last, last, 3, padding=1))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * last, classes))
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        features = self.stem(x - 0.5)
        logits: Tensor = self.head(F.relu(features + self.block(features)))
        return logits
