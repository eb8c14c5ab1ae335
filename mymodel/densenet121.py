"""DenseNet-121 of Huang et al. (2017)."""

from dataclasses import dataclass
from types import ModuleType
from typing import ClassVar, cast

from torch import nn

from mymodel.full_size import FullSize

__all__ = ["DenseNet121"]

_BLOCKS = (6, 12, 24, 16)
_SHALLOW_BLOCKS = (6, 6, 12, 8)


@dataclass(frozen=True, slots=True)
class DenseNet121(FullSize):
    """Densely connected blocks of 6, 12, 24 and 16 layers; 6, 6, 12 and 8 in the shallow mutant.

    >>> DenseNet121(channels=1).shallower()
    DenseNet121(channels=1, shallow=True, smallest=64)
    """

    name: ClassVar[str] = "densenet121"

    def network(self, models: ModuleType, classes: int) -> nn.Module:
        """The network for 3 channels, made with ``torchvision.models``."""
        blocks = _SHALLOW_BLOCKS if self.shallow else _BLOCKS
        return cast(nn.Module, models.DenseNet(growth_rate=32, block_config=blocks, num_classes=classes))
