"""SqueezeNet 1.0 of Iandola et al. (2016)."""

from dataclasses import dataclass
from types import ModuleType
from typing import ClassVar, cast

from torch import nn

from mymodel.full_size import FullSize

__all__ = ["SqueezeNet10"]

# Fire modules with as many channels out as in, so that the rest fits without them.
_REMOVABLE = (4, 7, 12)


@dataclass(frozen=True, slots=True)
class SqueezeNet10(FullSize):
    """Eight fire modules, five in the shallow mutant.

    torchvision ends this network with an activation; a head without one replaces it here, because logits that
    cannot be negative often all become 0, after which neither training nor a search for boundaries moves.

    >>> SqueezeNet10(channels=1).shallower()
    SqueezeNet10(channels=1, shallow=True, smallest=64)
    """

    name: ClassVar[str] = "squeezenet1_0"

    def network(self, models: ModuleType, classes: int) -> nn.Module:
        """The network for 3 channels, made with ``torchvision.models``."""
        network = cast(nn.Module, models.squeezenet1_0(weights=None, num_classes=classes))
        dropout, convolution, _, pool = cast(nn.Sequential, network.classifier)
        network.classifier = nn.Sequential(dropout, convolution, pool)
        if self.shallow:
            features = enumerate(cast(nn.Sequential, network.features))
            network.features = nn.Sequential(*(layer for index, layer in features if index not in _REMOVABLE))
        return network
