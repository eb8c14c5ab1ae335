"""Tensors and arrays out of files that `torch.save` wrote, without unpickling them.

Such a file is a zip archive: the numbers of a tensor lie in it as plain bytes, and a small pickle says which
shape they have. A pickle is a program that calls what it names, so it is never run here: its opcodes are read
into an inert tree of names and constants, and the few trees that stand for numbers are recognised by shape.
"""

import pickletools
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from deepfailguard.errors import DataFormatError

__all__ = ["read_torch_file"]

_STORAGES: Final = {
    "torch ByteStorage": "u1",
    "torch CharStorage": "i1",
    "torch ShortStorage": "<i2",
    "torch IntStorage": "<i4",
    "torch LongStorage": "<i8",
    "torch HalfStorage": "<f2",
    "torch FloatStorage": "<f4",
    "torch DoubleStorage": "<f8",
}
_NUMPY: Final = ("numpy.core.multiarray", "numpy._core.multiarray")  # before and since numpy 2
_NUMBERS: Final = ("u1", "i1", "i2", "i4", "i8", "f2", "f4", "f8")
_CONSTANTS: Final = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES: Final = ("BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT")
_TUPLES: Final = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_IGNORED: Final = ("PROTO", "STOP")
# What zipfile, pickletools, numpy and the tree raise on files that are damaged or hold something else.
_DAMAGE: Final = (
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    StopIteration,
    OSError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True, slots=True)
class _Name:
    """A function or class that the file names; it is never looked up."""

    name: str


@dataclass(slots=True)
class _Call:
    """What the file would call, and the state that it would set on the result."""

    function: Any
    arguments: Any
    state: Any = None


def read_torch_file(path: Path) -> NDArray[Any]:
    """The tensor, the array or the list of numbers that `torch.save` wrote.

    Raises:
        DataFormatError: the file is damaged, is of the form before torch 1.6, or holds anything else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            program = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            folder = program.removesuffix("data.pkl")
            if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
                raise ValueError("it was written on a big-endian machine")
            return np.asarray(_array(_Tree().read(archive.read(program)), archive, folder))
    except _DAMAGE as error:
        raise DataFormatError(
            f"{path}: expected one tensor, array or list of numbers saved by torch.save, but it cannot be read as "
            f"such without running it ({str(error) or 'it has no data.pkl'}); if you trust it, load it yourself and "
            "save the numbers with numpy.save as a .npy file beside it"
        ) from error


class _Tree:
    """Reads the opcodes that numbers need into a tree; every other opcode is an error."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def read(self, program: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(program):
            self._step(opcode.name, argument)
        (tree,) = self.stack
        return tree

    def _step(self, opcode: str, argument: Any) -> None:
        if opcode in _VALUES:
            self.stack.append(argument)
        elif opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode])
        elif opcode in _TUPLES:
            self.stack.append(tuple(self._pop(_TUPLES[opcode])))
        elif opcode == "GLOBAL":
            self.stack.append(_Name(argument))
        elif opcode in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif opcode in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        else:
            self._combine(opcode)

    def _combine(self, opcode: str) -> None:
        if opcode == "MARK":
            self.marks.append(len(self.stack))
        elif opcode == "TUPLE":
            self.stack.append(tuple(self._pop_to_mark()))
        elif opcode == "EMPTY_LIST":
            self.stack.append([])
        elif opcode == "APPENDS":
            items = self._pop_to_mark()
            self.stack[-1].extend(items)
        elif opcode == "APPEND":
            self.stack[-2].append(self.stack.pop())
        else:
            self._apply(opcode)

    def _apply(self, opcode: str) -> None:
        if opcode == "BINPERSID":
            self.stack.append(_Call(_Name("storage"), self.stack.pop()))
        elif opcode == "REDUCE":
            self.stack.append(_Call(*self._pop(2)))
        elif opcode == "BUILD":
            state = self.stack.pop()
            self.stack[-1].state = state
        elif opcode not in _IGNORED:
            raise ValueError(f"numbers need no opcode {opcode}")

    def _pop(self, count: int) -> list[Any]:
        start = len(self.stack) - count
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _pop_to_mark(self) -> list[Any]:
        return self._pop(len(self.stack) - self.marks.pop())


def _array(tree: Any, archive: zipfile.ZipFile, folder: str) -> Any:
    """The numbers that a tree stands for: an array, or a number of an outer list."""
    match tree:
        case int() | float():
            return np.asarray(tree)
        case list() if tree:
            return np.stack([_array(item, archive, folder) for item in tree])
        case _Call(
            _Name("torch._utils _rebuild_tensor_v2"), (_Call(_Name("storage"), storage), offset, shape, steps, *_)
        ):
            _, kind, key, *_ = storage
            numbers = np.frombuffer(archive.read(f"{folder}data/{key}"), dtype=_STORAGES[kind.name])
            return _strided(numbers, offset, shape, steps)
        case _Call(_Name(name), (dtype, data)) if name in _named("scalar"):
            return np.frombuffer(_bytes(data), dtype=_dtype(dtype))[0]
        case _Call(_Name(name), _, (1, shape, dtype, fortran, data)) if name in _named("_reconstruct"):
            numbers = np.frombuffer(_bytes(data), dtype=_dtype(dtype))
            return numbers.reshape(shape, order="F" if fortran else "C")
    raise ValueError("it holds something else than numbers")


def _named(function: str) -> Iterable[str]:
    return [f"{module} {function}" for module in _NUMPY]


def _dtype(tree: Any) -> str:
    match tree:
        case _Call(_Name("numpy dtype"), (str(code), *_), (_, str(order), *_)) if code in _NUMBERS:
            return order + code
    raise ValueError("its array holds something else than numbers")


def _bytes(tree: Any) -> bytes:
    match tree:
        case _Call(_Name("_codecs encode"), (str(text), "latin1")):
            return text.encode("latin1")
    raise ValueError("its array holds no plain bytes")


def _strided(numbers: NDArray[Any], offset: int, shape: tuple[int, ...], steps: tuple[int, ...]) -> NDArray[Any]:
    """A view of the numbers; numpy would read outside of them, so the reach is checked first."""
    if len(shape) != len(steps) or min((offset, *shape, *steps)) < 0:
        raise ValueError(f"offset {offset}, shape {shape} and strides {steps} make no tensor")
    reach = offset + sum((length - 1) * step for length, step in zip(shape, steps, strict=True))
    if 0 not in shape and reach >= len(numbers):
        raise ValueError(f"its tensor reaches to number {reach}, but there are {len(numbers)}")
    bytes_apart = tuple(step * numbers.itemsize for step in steps)
    return np.lib.stride_tricks.as_strided(numbers[offset:], shape, bytes_apart, writeable=False)
