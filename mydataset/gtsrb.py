"""German traffic signs (Stallkamp et al., 2012)."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deepfailguard.data.assembling import RawParts, check_limit
from deepfailguard.data.base import Splits
from deepfailguard.data.locating import Form
from deepfailguard.data.pictures import LabelledFile, PictureReader, labelled_files
from deepfailguard.errors import DataFormatError
from mydataset._published import OBTAIN, PublishedSet

__all__ = ["GTSRB"]

_CLASSES: Final = tuple(str(label) for label in range(43))
_TORCHVISION: Final = Form(
    "torchvision's files", ("gtsrb/GTSRB/Training", "gtsrb/GTSRB/Final_Test/Images", "gtsrb/GT-final_test.csv")
)


@dataclass(frozen=True, slots=True)
class GTSRB:
    """Colour images of 43 traffic signs in [0, 1].

    Attributes:
        root: folder with GTSRB/x_train, y_train, x_test, y_test (.npy or .pth), with pictures as
            GTSRB/train/CLASS/ and GTSRB/test/CLASS/, or with gtsrb/ as torchvision writes it.
        limit: use at most so many training and test images, drawn with a fixed seed.
        size: H and W to resize to; None: arrays stay as stored, pictures become 64 px.
    """

    root: str = "mydataset/data"
    limit: int | None = None
    size: int | None = None

    def load(self) -> Splits:
        """Read the arrays or pictures and split them."""
        published = PublishedSet("gtsrb", "GTSRB", self.root, self.limit, self.size)
        files = _TORCHVISION.find(Path(self.root).expanduser())
        if len(files) == len(_TORCHVISION.files) and not published.complete:
            return published.assemble(_torchvision_parts(files, published.reader, self.limit), _CLASSES)
        return published.load(f"torchvision.datasets.GTSRB(root, download=True), or {OBTAIN}")
