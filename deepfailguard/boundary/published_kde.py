"""Reading of the authors' density files: the one place where pickle opcodes are read.

The files are pickles of `scipy.stats.gaussian_kde`. A pickle is a program that names the functions to call,
so nothing of it is called here: the few names that such a file needs stand for inert classes of ours, which
keep what they are given. Points and bandwidth are then taken out of that by our own code.
"""

import io
import math
import pickle
import pickletools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepfailguard.errors import CorruptFileError, DataFormatError, DataNotFoundError, DeepfailguardError

__all__ = ["PublishedKde", "read_published_kde"]

_MOST_BYTES: Final = 64 * 2**20
_KINDS: Final = ("f4", "f8")
_OPCODES: Final = frozenset(
    """PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE
    BINBYTES SHORT_BINBYTES EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM
    SETITEMS MEMOIZE BINPUT LONG_BINPUT BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE NEWOBJ BUILD""".split()  # noqa: SIM905 (one name per line would be half of the file)
)


@dataclass(frozen=True, slots=True)
class PublishedKde:
    """One density that the authors fitted.

    Attributes:
        points: (n,) float64, n >= 2: the distances it was fitted to.
        bandwidth: standard deviation of the Gaussian on each point (> 0): factor * std of the points.
    """

    points: Tensor
    bandwidth: float


def read_published_kde(path: Path) -> PublishedKde:
    """Read one of the authors' density files without executing anything that it names.

    Raises:
        DataNotFoundError: there is no such file.
        DataFormatError: the file asks for something that a density does not need, or holds no usable density.
        CorruptFileError: the file is no whole pickle.
    """
    if not path.is_file():
        raise DataNotFoundError(f"no density file {path}; is it the published kde_results folder?")
    if path.stat().st_size > _MOST_BYTES:
        raise DataFormatError(f"{path} is larger than {_MOST_BYTES} bytes: not one of the published densities")
    content = path.read_bytes()
    try:
        _check_opcodes(content, path)
        return _density(_InertUnpickler(io.BytesIO(content), path).load(), path)
    except DeepfailguardError:
        raise
    except Exception as error:  # a damaged pickle may fail in any way
        raise CorruptFileError(f"{path} is not a whole pickle: {error!r}; download it again") from error


class _Inert:
    """Stands for an admitted object or function: keeps what it is given and does nothing."""

    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any) -> "_Inert":
        made = super().__new__(cls)
        made.args = args
        made.state = None
        return made

    def __init__(self, *args: Any) -> None:
        """Take the arguments that `__new__` has kept."""

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Kde(_Inert): ...


class _Array(_Inert): ...


class _ArrayClass(_Inert): ...


class _Dtype(_Inert): ...


class _Scalar(_Inert): ...


class _InertUnpickler(pickle.Unpickler):
    """Resolves five names to inert classes and refuses every other one."""

    admitted: ClassVar[dict[tuple[str, str], type[_Inert]]] = {
        ("scipy.stats.kde", "gaussian_kde"): _Kde,
        ("scipy.stats._kde", "gaussian_kde"): _Kde,
        ("numpy", "ndarray"): _ArrayClass,
        ("numpy", "dtype"): _Dtype,
        **{
            (f"numpy.{core}.multiarray", name): inert
            for core in ("core", "_core")
            for name, inert in (("_reconstruct", _Array), ("scalar", _Scalar))
        },
    }

    def __init__(self, file: io.BytesIO, path: Path) -> None:
        super().__init__(file)
        self.path = path

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """The inert class that stands for an admitted name."""
        try:
            return self.admitted[module_name, global_name]
        except KeyError:
            raise DataFormatError(
                f"{self.path} asks for {module_name}.{global_name}, which no density needs: refused, "
                "nothing was executed. Do not use this file; download it anew from its authors"
            ) from None


def _check_opcodes(content: bytes, path: Path) -> None:
    """Refuse opcodes that a density does not need (persistent ids, extension codes, ...), and huge memo indices."""
    for opcode, argument, position in pickletools.genops(content):
        if opcode.name not in _OPCODES:
            raise DataFormatError(f"{path} holds the pickle opcode {opcode.name} at byte {position}: refused")
        if opcode.name == "LONG_BINPUT" and int(argument or 0) > len(content):  # would allocate that many memo slots
            raise DataFormatError(f"{path} has a memo index of {argument} at byte {position}: refused")


def _density(loaded: Any, path: Path) -> PublishedKde:
    if not isinstance(loaded, _Kde) or not isinstance(loaded.state, dict):
        raise DataFormatError(f"{path} holds a {type(loaded).__name__.strip('_')}, expected a gaussian_kde")
    points = _numbers(loaded.state.get("dataset"), "dataset", path)
    factor = _numbers(loaded.state.get("factor"), "factor", path)
    if len(points) < 2 or len(factor) != 1 or not np.isfinite(points).all():
        raise DataFormatError(f"{path}: expected 2 or more finite points and one factor, got {len(points)} points")
    bandwidth = float(factor[0] * points.std(ddof=1))
    if not 0 < bandwidth < math.inf:
        raise DataFormatError(f"{path}: its bandwidth is {bandwidth}, expected a positive number")
    return PublishedKde(torch.from_numpy(points), bandwidth)


def _numbers(value: Any, name: str, path: Path) -> NDArray[np.float64]:
    """The numbers of an array of shape (n,) or (1, n), or of a scalar, as float64 (n,)."""
    match value:
        case float() | int():
            return np.array([value], dtype=np.float64)
        case _Scalar(args=(_Dtype() as kind, bytes() as raw)):
            return np.frombuffer(raw, _dtype(kind, name, path)).astype(np.float64)
        case _Array(state=(_, tuple() as shape, _Dtype() as kind, bool(), bytes() as raw)):
            numbers = np.frombuffer(raw, _dtype(kind, name, path)).astype(np.float64)
            if shape in ((len(numbers),), (1, len(numbers))):
                return numbers
    raise DataFormatError(f"{path}: its {name} is not a number or an array of shape (n,) or (1, n)")


def _dtype(kind: _Inert, name: str, path: Path) -> np.dtype[Any]:
    match kind:
        case _Dtype(args=(str() as code, *_), state=(_, "<" | ">" | "=" as order, *_)) if code in _KINDS:
            return np.dtype(f"{order}{code}")
    raise DataFormatError(f"{path}: its {name} has the type {kind.args!r}, expected float32 or float64")
