"""An example of a user's own network: plain PyTorch that knows nothing of deepfailguard.

``conf/model/example.yaml`` makes an architecture of it; copy the two and change what you like.
"""

from torch import Tensor, nn

__all__ = ["ExampleNetwork"]


class ExampleNetwork(nn.Module):
    """A few strided convolutions, an average over the image and a linear layer.

    Args:
        channels: C of the images (B, C, H, W).
        width: channels of the first convolution; each further one has twice as many.
        depth: how many convolutions.
        num_classes: K.
    """

    def __init__(self, channels: int, width: int, depth: int, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(depth):
            layers += [nn.Conv2d(channels, width, kernel_size=3, stride=2, padding=1), nn.ReLU()]
            channels, width = width, 2 * width
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] to logits (B, num_classes)."""
        logits: Tensor = self.head(self.features(2 * x - 1).mean(dim=(2, 3)))
        return logits
