"""ResNet-50 of He et al. (2016)."""

from dataclasses import dataclass
from types import ModuleType
from typing import ClassVar, cast

from torch import nn

from mymodel.full_size import FullSize

__all__ = ["ResNet50"]

_BLOCKS = [3, 4, 6, 3]
_SHALLOW_BLOCKS = [2, 2, 2, 2]


@dataclass(frozen=True, slots=True)
class ResNet50(FullSize):
    """Bottleneck blocks in four stages; the shallow mutant has two a stage, which makes it a ResNet-26.

    >>> ResNet50(channels=1).shallower()
    ResNet50(channels=1, shallow=True, smallest=64)
    """

    name: ClassVar[str] = "resnet50"

    def network(self, models: ModuleType, classes: int) -> nn.Module:
        """The network for 3 channels, made with ``torchvision.models``."""
        blocks = _SHALLOW_BLOCKS if self.shallow else _BLOCKS
        return cast(nn.Module, models.resnet.ResNet(models.resnet.Bottleneck, blocks, num_classes=classes))
