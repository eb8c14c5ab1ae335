"""Picture files (PNG, JPEG, PPM, ...) in one folder per class."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from deepfailguard.data.converting import RawImages, check_limit
from deepfailguard.data.splitting import SPLIT_SEED
from deepfailguard.errors import ConfigurationError, DataFormatError
from deepfailguard.seeding import generator

__all__ = ["ENDINGS", "Channels", "LabelledFile", "PictureReader", "class_folders", "labelled_files"]

Channels = Literal[1, 3]
ENDINGS: Final = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_MODES: Final = {1: "L", 3: "RGB"}


@dataclass(frozen=True, slots=True)
class LabelledFile:
    """A picture file and its label.

    Attributes:
        path: the file.
        label: its class, >= 0.
    """

    path: Path
    label: int


@dataclass(frozen=True, slots=True)
class PictureReader:
    """Reads picture files as bytes of one size.

    Attributes:
        size: H and W of the result (>= 1); pictures are resized to it and do not keep their aspect.
        channels: 3 for colour, 1 for grey; pictures are converted.
    """

    size: int
    channels: Channels = 3

    def __post_init__(self) -> None:
        if self.size < 1 or self.channels not in _MODES:
            raise ConfigurationError(
                f"expected size >= 1 and 1 or 3 channels, got size={self.size}, channels={self.channels}"
            )

    def read(self, where: Path, files: Sequence[LabelledFile], limit: int | None = None) -> RawImages:
        """At most `limit` of the files, drawn with a fixed seed, as pixels and labels.

        Args:
            where: what errors name.
            files: picture files; their order plays no role beyond the draw, as folders are sorted by class.
            limit: None for all.

        Returns:
            uint8 images (B, size, size, channels) in random order, with their labels.
        """
        check_limit(limit)
        order = torch.randperm(len(files), generator=generator(SPLIT_SEED, "pictures")).tolist()
        chosen = [files[place] for place in order[:limit]]
        images = np.empty((len(chosen), self.size, self.size, self.channels), dtype=np.uint8)
        for row, file in zip(images, chosen, strict=True):
            row[...] = self._pixels(file.path)
        return RawImages(str(where), images, np.array([file.label for file in chosen], dtype=np.int64))

    def _pixels(self, path: Path) -> NDArray[np.uint8]:
        try:
            with Image.open(path) as picture:
                if picture.mode.startswith(("I", "F")):
                    raise ValueError(f"its pixels have more than 8 bits (mode {picture.mode}); save it with 8 bits")
                upright = ImageOps.exif_transpose(picture).convert(_MODES[self.channels])
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataFormatError(f"{path}: expected a picture, but it cannot be used: {error}") from error
        resized = upright.resize((self.size, self.size), Image.Resampling.BILINEAR)
        return np.asarray(resized).reshape(self.size, self.size, self.channels)


def class_folders(folder: Path) -> tuple[str, ...]:
    """Names of the class folders in a folder, sorted (numbers by value, so that 10 follows 9); hidden ones left out.

    Raises:
        DataFormatError: there is none.
    """
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if all(name.isdecimal() for name in names):
        names.sort(key=int)
    if not names:
        raise DataFormatError(f"{folder}: expected one folder of pictures for each class, but it has no folders")
    return tuple(names)


def labelled_files(folder: Path, classes: Sequence[str]) -> list[LabelledFile]:
    """The picture files below folder/CLASS for each of the classes, sorted.

    Raises:
        DataFormatError: a folder stands for no class, or there are no pictures at all.
    """
    unknown = sorted(set(class_folders(folder)) - set(classes))
    if unknown:
        raise DataFormatError(
            f"{folder}: the folders {', '.join(unknown)} stand for none of the {len(classes)} classes"
        )
    files = [
        LabelledFile(path, label)
        for label, name in enumerate(classes)
        for path in sorted((folder / name).rglob("*"))
        if path.suffix.lower() in ENDINGS
    ]
    if not files:
        raise DataFormatError(f"{folder}: no picture files ({', '.join(sorted(ENDINGS))}) in its class folders")
    return files
