"""The common form of MNIST and its successors: four idx files, plain or packed with gzip."""

from dataclasses import dataclass
from typing import Final

from deepfailguard.data.assembling import RawParts, assemble
from deepfailguard.data.base import Splits
from deepfailguard.data.converting import RawImages
from deepfailguard.data.locating import Form, locate
from deepfailguard.data.reading import read_idx

__all__ = ["IdxSet"]

_BRIGHTEST: Final = 255.0  # idx pixels are bytes
_FILES: Final = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


@dataclass(frozen=True, slots=True)
class IdxSet:
    """A data set in MNIST's format: grey images (B, 1, 28, 28), bytes scaled to [0, 1].

    Attributes:
        name: what versions are filed under.
        folder: torchvision's folder for it below the root; the files may also lie in the root itself.
        classes: the class names in label order.
        obtain: where the files can be had.
    """

    name: str
    folder: str
    classes: tuple[str, ...]
    obtain: str

    def load(self, root: str, limit: int | None) -> Splits:
        """Read the files below the root, at most the first `limit` images of the training and the test part."""
        forms = (
            Form("torchvision's files", tuple(f"{self.folder}/raw/{name}" for name in _FILES), ("", ".gz")),
            Form("the same files in the root itself", _FILES, ("", ".gz")),
        )
        files = locate(self.name, root, forms, self.obtain).files
        x_train, y_train, x_test, y_test = (read_idx(path) for path in files)
        training = RawImages(str(files[0]), x_train, y_train, _BRIGHTEST)
        parts = RawParts(training, RawImages(str(files[2]), x_test, y_test, _BRIGHTEST))
        return assemble(self.name, parts, self.classes, limit)
