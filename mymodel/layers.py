"""Layers that several architectures use."""

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["AtLeast", "Standardise", "convolution", "initialise", "pooled_features", "prepared"]


class Standardise(nn.Module):
    """Maps images in [0, 1] to [-2, 2], about zero mean and unit variance for natural images.

    The constants are fixed on purpose: statistics learned from the data would undo wrongly scaled inputs,
    which is one of the faults that a guard has to find.

    >>> import torch
    >>> Standardise()(torch.tensor([0.0, 0.5, 1.0]))
    tensor([-2.,  0.,  2.])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Images of any shape to the same shape."""
        return (x - 0.5) * 4.0


class AtLeast(nn.Module):
    """Enlarges images whose height or width is below a minimum, and leaves others alone.

    Args:
        size: the minimum of height and width in pixels.

    >>> import torch
    >>> AtLeast(16)(torch.zeros(2, 1, 8, 20)).shape
    torch.Size([2, 1, 16, 20])
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to (B, C, max(H, size), max(W, size))."""
        height, width = x.shape[-2:]
        if height >= self.size and width >= self.size:
            return x
        enlarged = (max(height, self.size), max(width, self.size))
        return F.interpolate(x, size=enlarged, mode="bilinear", align_corners=False)

    def extra_repr(self) -> str:
        """Shown in the printed network."""
        return f"size={self.size}"


def prepared(body: nn.Module, smallest: int) -> nn.Sequential:
    """A network that enlarges images below `smallest` pixels, standardises them and gives them to `body`."""
    return nn.Sequential(AtLeast(smallest), Standardise(), body)


def convolution(width: int, wider: int, kernel: int) -> nn.Sequential:
    """Convolution (kernel odd), batch normalisation and ReLU: (B, width, H, W) to (B, wider, H, W)."""
    filters = nn.Conv2d(width, wider, kernel_size=kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(filters, nn.BatchNorm2d(wider), nn.ReLU())


def pooled_features(side: int) -> nn.Sequential:
    """Feature maps (B, C, H, W) of any H, W >= 1 to (B, C * side * side)."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(side), nn.Flatten())


def initialise(network: nn.Module) -> nn.Module:
    """Draw weights of convolutions and linear layers after He et al. (2015), with biases 0; returns the network.

    Layers without normalisation after them, the hidden linear ones, lose most of their signal with torch's
    default, which scales it down by about 2.4.
    """
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network
