"""Images that several processes of one machine read without copies of their own: files mapped into memory."""

import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from deepfailguard.errors import StoreError

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
    """Files of some parts of the images, in a temporary folder that goes away afterwards."""
    with tempfile.TemporaryDirectory(prefix="deepfailguard-images-") as folder:
        yield {
            part: ImageFile.write(Path(folder) / f"{number}.raw", images[part])
            for number, part in enumerate(sorted(set(parts)))
        }
