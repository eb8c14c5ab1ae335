"""Damage to files on disk."""

import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

from deepfailguard.store import load_tensors, save_tensors

__all__ = ["Spoil", "marker_of", "spoil"]

Spoil = Literal["flipped bit", "truncated", "missing", "pickle", "other numbers"]
"""A random bit is another one; a random part of the end is gone; the file is gone; in its place is a pickle that leaves
a mark when it is read, or a well-formed file of other weights."""


class _Marking:
    """Leaves a mark when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (self.path, "w")


def marker_of(path: Path) -> Path:
    """The file that is there once somebody unpickled what is at `path`."""
    return path.with_name(f".{path.name}.was-unpickled")


def spoil(path: Path, way: Spoil, draw: random.Random) -> None:
    """Damage a file.

    Args:
        path: of a file that holds something.
        way: of damage.
        draw: makes the choices.
    """
    _WAYS[way](path, draw)


def _flip(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def _truncate(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)])


def _remove(path: Path, _: random.Random) -> None:
    path.unlink()


def _pickle(path: Path, _: random.Random) -> None:
    path.write_bytes(pickle.dumps(_Marking(str(marker_of(path)))))


def _exchange(path: Path, draw: random.Random) -> None:
    file = load_tensors(path)
    name = draw.choice([name for name, tensor in file.tensors.items() if tensor.is_floating_point()])
    save_tensors(path, {**file.tensors, name: file.tensors[name] + 0.01}, file.metadata)


_WAYS: Final[dict[Spoil, Callable[[Path, random.Random], None]]] = {
    "flipped bit": _flip,
    "truncated": _truncate,
    "missing": _remove,
    "pickle": _pickle,
    "other numbers": _exchange,
}
