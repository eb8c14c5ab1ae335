"""The common form of the paper's data sets: four array files, or pictures in one folder per class."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deepfailguard.data.assembling import RawParts, assemble, numbered_classes
from deepfailguard.data.base import Splits
from deepfailguard.data.converting import ImageForm, RawImages
from deepfailguard.data.locating import Form, Found, locate
from deepfailguard.data.pictures import PictureReader, class_folders, labelled_files
from deepfailguard.data.reading import read_array

__all__ = ["FOLDER_SIZE", "OBTAIN", "PublishedSet", "array_parts", "folder_parts"]

FOLDER_SIZE: Final = 64
CHANNELS: Final = 3
OBTAIN: Final = (
    "extract the data/ folder of mydatasets.zip, which the README of the published DeepFailGuard code "
    "(lzhacademic/DeepFailGuard on GitHub) names, or lay your own copy out as above"
)


@dataclass(frozen=True, slots=True)
class PublishedSet:
    """One of the paper's data sets; its arrays or pictures become colour images in [0, 1].

    The published arrays differ in scale: bytes 0..255 and floats 0..1 are told apart by type and range (the log
    says which was taken), anything else is refused. Grey images are repeated to three channels, as in the paper.

    Attributes:
        name: what versions are filed under.
        folder: its folder below the root.
        root: folder of all data.
        limit: at most so many training and test images, drawn with a fixed seed as files may be sorted by class.
        size: H and W; None: arrays stay as stored, pictures become 64 px.
    """

    name: str
    folder: str
    root: str
    limit: int | None
    size: int | None

    def load(self) -> Splits:
        """Find the files in either form, read them and split them."""
        return self.read(locate(self.name, self.root, self.forms, OBTAIN))

    @property
    def forms(self) -> tuple[Form, Form]:
        """The published arrays, and pictures in one folder per class."""
        names = tuple(f"{self.folder}/{name}" for name in ("x_train", "y_train", "x_test", "y_test"))
        parts = (f"{self.folder}/train", f"{self.folder}/test")
        return Form("published arrays", names, (".npy", ".pth")), Form("pictures as PART/CLASS/*.png, .jpg, ...", parts)

    def read(self, found: Found) -> Splits:
        """Read one of the forms and split it."""
        if found.form == self.forms[0]:
            parts = array_parts(found.files)
            return self.assemble(parts, numbered_classes(parts))
        classes = class_folders(found.files[0])
        return self.assemble(folder_parts(found.files, classes, self.reader, self.limit), classes)

    @property
    def reader(self) -> PictureReader:
        """How pictures are read."""
        return PictureReader(FOLDER_SIZE if self.size is None else self.size, CHANNELS)

    def assemble(self, parts: RawParts, classes: tuple[str, ...]) -> Splits:
        """The parts as splits of this data set."""
        form = ImageForm(channels=CHANNELS, size=self.size)
        return assemble(self.name, parts.draw(self.limit), classes, self.limit, form)


def array_parts(files: tuple[Path, ...]) -> RawParts:
    """Images and labels of training and test from four array files: x_train, y_train, x_test, y_test."""
    x_train, y_train, x_test, y_test = (read_array(path) for path in files)
    return RawParts(RawImages(str(files[0]), x_train, y_train), RawImages(str(files[2]), x_test, y_test))


def folder_parts(
    folders: tuple[Path, ...], classes: tuple[str, ...], reader: PictureReader, limit: int | None = None
) -> RawParts:
    """Pictures below a training and a test folder with one folder per class each."""
    training, test = (reader.read(folder, labelled_files(folder, classes), limit) for folder in folders)
    return RawParts(training, test)
