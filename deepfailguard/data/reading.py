"""Arrays from files: .npy, .npz, torch's .pth, and the idx files of MNIST. Nothing in a file is ever executed."""

import gzip
import math
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from deepfailguard.data.torch_files import read_torch_file
from deepfailguard.errors import DataFormatError

__all__ = ["read_array", "read_idx", "read_npz", "read_records"]

# What numpy, zipfile and gzip raise on files that are cut off, damaged or hold pickled objects.
_DAMAGE: Final = (ValueError, TypeError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)
_IDX_UINT8: Final = 8


def read_array(path: Path) -> NDArray[Any]:
    """The array of a .npy file, or the one tensor or array of a .pth file.

    Raises:
        DataFormatError: the file is damaged, holds pickled objects, or has another ending.
    """
    if path.suffix in (".pth", ".pt"):
        return read_torch_file(path)
    if path.suffix != ".npy":
        raise DataFormatError(f"{path}: expected a file ending in .npy, .pth or .pt, got {path.suffix!r}")
    with _readable(path, "a .npy file of numbers"), path.open("rb") as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def read_npz(path: Path, names: Sequence[str]) -> list[NDArray[Any]]:
    """The named arrays of a .npz file, in the order of the names.

    Raises:
        DataFormatError: the file is damaged, holds pickled objects, or lacks a name.
    """
    wanted = f"a .npz file with the arrays {', '.join(names)}"
    with _readable(path, wanted), zipfile.ZipFile(path) as archive:
        return [_npz_member(archive, name) for name in names]


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The bytes of an idx file (MNIST's format), plain or packed with gzip.

    Returns:
        uint8 array of the shape that the file's header gives.

    Raises:
        DataFormatError: the file is damaged, is no idx file of bytes, or has another length than it says.
    """
    with _readable(path, "an idx file of bytes"):
        content = _unpacked(path)
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != _IDX_UINT8:
        raise DataFormatError(
            f"{path}: expected an idx file of bytes (it starts with 00 00 08), got {content[:4].hex(' ')}"
        )
    header = 4 + 4 * content[3]
    shape = tuple(np.frombuffer(content[4:header], dtype=">u4").tolist()) if len(content) >= header else (-1,)
    if math.prod(shape) != len(content) - header:
        raise DataFormatError(
            f"{path}: its header promises the shape {shape}, but {len(content) - header} bytes follow; fetch it again"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)


def read_records(paths: Sequence[Path], length: int) -> NDArray[np.uint8]:
    """Files of records of equal length, one after the other: uint8 (records, length).

    Raises:
        DataFormatError: a file is empty or is not a whole number of records.
    """
    parts = []
    for path in paths:
        with _readable(path, f"records of {length} bytes"):
            content = path.read_bytes()
        if not content or len(content) % length:
            raise DataFormatError(
                f"{path}: expected records of {length} bytes, got {len(content)} bytes; fetch it again"
            )
        parts.append(np.frombuffer(content, dtype=np.uint8).reshape(-1, length))
    return np.concatenate(parts)


def _npz_member(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    with archive.open(f"{name}.npy") as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _unpacked(path: Path) -> bytes:
    content = path.read_bytes()
    return gzip.decompress(content) if path.suffix == ".gz" else content


@contextmanager
def _readable(path: Path, expected: str) -> Iterator[None]:
    """Turn what readers raise on a bad file into one error that names it."""
    try:
        yield
    except _DAMAGE as error:
        raise DataFormatError(
            f"{path}: expected {expected}, but it cannot be read ({error}); fetch it again, "
            "or save it anew from plain arrays (pickled objects are refused)"
        ) from error
