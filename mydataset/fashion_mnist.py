"""Articles of clothing in 28 px (Xiao et al., 2017)."""

from dataclasses import dataclass
from typing import Final

from deepfailguard.data.base import Splits
from mydataset._idx import IdxSet

__all__ = ["FashionMNIST"]

_CLASSES: Final = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
_OBTAIN: Final = (
    "the Debian package dataset-fashion-mnist (set the root to its folder /usr/share/datasets/fashion-mnist), or "
    "torchvision.datasets.FashionMNIST(root, download=True)"
)


@dataclass(frozen=True, slots=True)
class FashionMNIST:
    """60,000 + 10,000 grey images (1, 28, 28) in [0, 1] of 10 kinds of clothing.

    Attributes:
        root: folder with FashionMNIST/raw/ (torchvision's files), or with the four idx files themselves, plain
            or packed with gzip, as in Debian's package.
        limit: use at most the first `limit` training and test images.
    """

    root: str = "mydataset/data"
    limit: int | None = None

    def load(self) -> Splits:
        """Read the idx files and split them."""
        return IdxSet("fashion_mnist", "FashionMNIST", _CLASSES, _OBTAIN).load(self.root, self.limit)
