"""What the full-size architectures share: how torchvision's networks are fitted to small images and any channels."""

from abc import abstractmethod
from dataclasses import dataclass
from types import ModuleType
from typing import cast

from torch import nn

from deepfailguard.errors import ConfigurationError
from deepfailguard.torchvision_import import import_torchvision
from mymodel.family import Family
from mymodel.layers import prepared

__all__ = ["FullSize"]


@dataclass(frozen=True, slots=True)
class FullSize(Family):
    """One of torchvision's networks without pretrained weights, for images of 28 to 224 px.

    Attributes:
        smallest: images below this many pixels are enlarged to it, since the families were made for 224 px;
            64 is the least that all of them accept.
    """

    smallest: int = 64

    def __post_init__(self) -> None:
        # No zero-argument super() here: slots=True makes a new class, which such a super() would not know.
        Family.__post_init__(self)
        if self.smallest < 64:
            raise ConfigurationError(f"{self.name}: smallest must be at least 64 px, got {self.smallest}")

    def build(self, classes: int) -> nn.Sequential:
        """A network from images (B, channels, H, W) in [0, 1] to logits (B, classes)."""
        network = self.network(import_torchvision().models, classes)
        if self.channels != 3:
            _take_channels(network, self.channels)
        return prepared(network, self.smallest)

    @abstractmethod
    def network(self, models: ModuleType, classes: int) -> nn.Module:
        """The family's network for 3 channels, made with ``torchvision.models``."""


def _take_channels(network: nn.Module, channels: int) -> None:
    """Replace the first convolution by one that takes other channels and is initialised as the old one was."""
    name, old = next((name, module) for name, module in network.named_modules() if isinstance(module, nn.Conv2d))
    new = nn.Conv2d(
        channels,
        old.out_channels,
        kernel_size=cast(tuple[int, int], old.kernel_size),
        stride=cast(tuple[int, int], old.stride),
        padding=cast(tuple[int, int], old.padding),
        bias=old.bias is not None,
    )
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    network.set_submodule(name, new)
