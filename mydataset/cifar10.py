"""Small colour photographs of animals and vehicles (Krizhevsky, 2009)."""

from dataclasses import dataclass

from deepfailguard.data.assembling import assemble
from deepfailguard.data.base import Splits
from mydataset._cifar10 import CLASSES, read_cifar10

__all__ = ["CIFAR10"]


@dataclass(frozen=True, slots=True)
class CIFAR10:
    """50,000 + 10,000 colour images (3, 32, 32) in [0, 1] of 10 classes.

    Attributes:
        root: folder with CIFAR10/cifar10.npz, CIFAR10/x_train.npy and its siblings, or cifar-10-batches-bin/.
        limit: use at most the first `limit` training and test images.
    """

    root: str = "mydataset/data"
    limit: int | None = None

    def load(self) -> Splits:
        """Read the files and split them."""
        return assemble("cifar10", read_cifar10(self.root), CLASSES, self.limit)
