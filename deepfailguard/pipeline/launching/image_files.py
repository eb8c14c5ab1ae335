"""Images that several processes of one machine read without copies of their own: files mapped into memory."""

import glob
import math
import os
import platform
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from deepfailguard.errors import StoreError
from deepfailguard.pipeline.launching.terminating import exit_on_sigterm

__all__ = ["ImageFile", "image_files"]


@dataclass(frozen=True, slots=True)
class ImageFile:
    """Raw images on disk.

    Attributes:
        path: of the file.
        shape: (B, C, H, W), B >= 1.
        dtype: of the images.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def write(cls, path: Path, images: Tensor) -> "ImageFile":
        """Write images (B, C, H, W) of any device and dtype."""
        raw = images.detach().cpu().contiguous()
        try:
            path.write_bytes(raw.flatten().view(torch.uint8).numpy().data)
        except OSError as error:
            raise StoreError(
                f"cannot lay down {raw.nbytes / 1e9:.1f} GB of images for the workers in {path.parent}: {error}; "
                "set the environment variable TMPDIR to a folder with room for them"
            ) from error
        return cls(path, tuple(raw.shape), raw.dtype)

    def read(self, start: int, stop: int) -> Tensor:
        """Images (stop - start, C, H, W) on the CPU; a write to them reaches nobody else."""
        mapped = torch.from_file(str(self.path), shared=False, size=math.prod(self.shape), dtype=self.dtype)
        return mapped.view(self.shape)[start:stop]


@contextmanager
def image_files(images: Mapping[str, Tensor], parts: Iterable[str]) -> Iterator[dict[str, ImageFile]]:
    """Files of some parts of the images, in a temporary folder that goes away afterwards.

    It goes away after SIGTERM too. What processes of this machine left that were killed is removed at the start.
    """
    _remove_leftovers(Path(tempfile.gettempdir()))
    with exit_on_sigterm(), tempfile.TemporaryDirectory(prefix=f"{_prefix()}{os.getpid()}-") as folder:
        yield {
            part: ImageFile.write(Path(folder) / f"{number}.raw", images[part])
            for number, part in enumerate(sorted(set(parts)))
        }


def _prefix() -> str:
    # The machine's name is in it: others, and containers, may share the folder, and their process numbers differ.
    return f"deepfailguard-images-{platform.node()}-"


def _remove_leftovers(parent: Path) -> None:
    for folder in parent.glob(f"{glob.escape(_prefix())}*"):
        number = folder.name.removeprefix(_prefix()).partition("-")[0]
        if number.isdecimal() and not _lives(int(number)):
            shutil.rmtree(folder, ignore_errors=True)  # it may be somebody else's


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)  # sends nothing
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # somebody else's, or no number that a process can have
        return True
    return True
