"""VGG-16 of Simonyan & Zisserman (2015)."""

from dataclasses import dataclass
from types import ModuleType
from typing import ClassVar, cast

from torch import nn

from mymodel.full_size import FullSize

__all__ = ["VGG16"]


@dataclass(frozen=True, slots=True)
class VGG16(FullSize):
    """Thirteen stacked 3x3 convolutions and three linear layers; the shallow mutant is VGG-11.

    >>> VGG16(channels=1).shallower()
    VGG16(channels=1, shallow=True, smallest=64)
    """

    name: ClassVar[str] = "vgg16"

    def network(self, models: ModuleType, classes: int) -> nn.Module:
        """The network for 3 channels, made with ``torchvision.models``."""
        make = models.vgg11 if self.shallow else models.vgg16
        return cast(nn.Module, make(weights=None, num_classes=classes))
