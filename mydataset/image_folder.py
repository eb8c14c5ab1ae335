"""Your own pictures in one folder per class."""

from dataclasses import dataclass

from deepfailguard.data.assembling import assemble, stratified_test
from deepfailguard.data.base import Splits
from deepfailguard.data.locating import Form, locate
from deepfailguard.data.pictures import Channels, PictureReader, class_folders, labelled_files
from mydataset._published import folder_parts

__all__ = ["ImageFolder"]


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """Pictures as root/train/CLASS/*.png (or .jpg, .ppm, ...), resized, in [0, 1].

    With a folder root/test/ of the same form that is the test part, else 20 % of each class are (seed 42). Classes
    are numbered in the order of their folders' names; names that are all numbers go by value (2 before 10), where
    torchvision's ImageFolder goes by letter (10 before 2): mind that with models that were trained there.

    Attributes:
        root: folder with train/ and, if you have it, test/.
        size: H and W that pictures are resized to (>= 1); their aspect is not kept.
        channels: 3 for colour, 1 for grey.
        limit: use at most so many training and test pictures, drawn with a fixed seed.
        name: what versions are filed under.
    """

    root: str = "mydataset/data/image_folder"
    size: int = 64
    channels: Channels = 3
    limit: int | None = None
    name: str = "image_folder"

    def load(self) -> Splits:
        """Read the pictures and split them."""
        form = Form(
            "pictures as train/CLASS/*.png, .jpg, ... (and test/CLASS/..., if you have a test part)", ("train",)
        )
        training = locate(self.name, self.root, [form], "these are your own pictures").files[0]
        classes, reader = class_folders(training), PictureReader(self.size, self.channels)
        test = training.parent / "test"
        if test.is_dir():
            parts = folder_parts((training, test), classes, reader, self.limit)
        else:
            parts = stratified_test(reader.read(training, labelled_files(training, classes)))
        return assemble(self.name, parts, classes, self.limit)
