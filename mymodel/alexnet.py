"""AlexNet of Krizhevsky et al. (2012), in its form for one device."""

from dataclasses import dataclass
from types import ModuleType
from typing import ClassVar, cast

from torch import nn

from mymodel.full_size import FullSize

__all__ = ["AlexNet"]

# The last convolution and its activation: 256 channels in and out, so that nothing else has to change.
_LAST_CONVOLUTION = slice(10, 12)


@dataclass(frozen=True, slots=True)
class AlexNet(FullSize):
    """Five convolutions from 11x11 to 3x3 and three linear layers; the shallow mutant has four convolutions.

    >>> AlexNet(channels=1).shallower()
    AlexNet(channels=1, shallow=True, smallest=64)
    """

    name: ClassVar[str] = "alexnet"

    def network(self, models: ModuleType, classes: int) -> nn.Module:
        """The network for 3 channels, made with ``torchvision.models``."""
        network = cast(nn.Module, models.alexnet(weights=None, num_classes=classes))
        if self.shallow:
            features = list(cast(nn.Sequential, network.features))
            del features[_LAST_CONVOLUTION]
            network.features = nn.Sequential(*features)
        return network
