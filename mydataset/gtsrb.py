"""German traffic signs (Stallkamp et al., 2012)."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deepfailguard.data.assembling import RawParts
from deepfailguard.data.base import Splits
from deepfailguard.data.locating import Form, locate
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
        obtain = f"torchvision.datasets.GTSRB(root, download=True), or {OBTAIN}"
        found = locate("gtsrb", self.root, (*published.forms, _TORCHVISION), obtain)
        if found.form != _TORCHVISION:
            return published.read(found)
        return published.assemble(_torchvision_parts(found.files, published.reader, self.limit), _CLASSES)


def _torchvision_parts(files: tuple[Path, ...], reader: PictureReader, limit: int | None) -> RawParts:
    training, test, table = files
    folders = tuple(f"{int(name):05d}" for name in _CLASSES)
    return RawParts(
        reader.read(training, labelled_files(training, folders), limit),
        reader.read(test, _labelled_by(table, test), limit),
    )


def _labelled_by(table: Path, folder: Path) -> list[LabelledFile]:
    """The test pictures, whose labels stand in a table with the columns Filename and ClassId."""
    try:
        with table.open(newline="") as file:
            rows = list(csv.DictReader(file, delimiter=";"))
        return [LabelledFile(folder / Path(row["Filename"]).name, int(row["ClassId"])) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise DataFormatError(
            f"{table}: expected a table with the columns Filename and ClassId between semicolons, got {error!r}"
        ) from error
