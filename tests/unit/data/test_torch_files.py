"""Against torch.load itself, and against files that want something executed."""

import contextlib
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deepfailguard.data.torch_files import read_torch_file
from deepfailguard.errors import DataFormatError

NUMBERS = {
    "bytes": torch.arange(24, dtype=torch.uint8).reshape(2, 3, 2, 2),
    "floats": torch.linspace(0, 1, 12).reshape(3, 1, 2, 2),
    "half": torch.linspace(0, 1, 6, dtype=torch.float16),
    "labels": torch.tensor([3, -1, 7]),
    "scalar": torch.tensor(2.5, dtype=torch.float64),
    "view with an offset": torch.arange(60.0).reshape(5, 3, 4)[2:, :, 1:3],
    "permuted": torch.arange(24, dtype=torch.int32).reshape(2, 3, 4).permute(2, 0, 1),
    "expanded": torch.tensor([[1], [2]], dtype=torch.int16).expand(2, 3),
    "empty": torch.zeros(0, 3),
    "list of tensors": [torch.ones(2, 2), torch.zeros(2, 2)],
    "array": np.arange(12, dtype=np.uint8).reshape(3, 2, 2),
    "float array": np.linspace(0, 1, 300, dtype=np.float64),  # bytes above 127 take two in the file
    "Fortran array": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    "list of numbers": [1, 2, 70_000, -5],
    "list of one": [4],
    "list of floats": [0.5, 1.0],
    "list of numpy numbers": [np.int64(3), np.int64(2)],
}


def save(value: Any, path: Path) -> Path:
    torch.save(value, path)
    return path


@pytest.mark.parametrize("kind", NUMBERS)
def test_numbers_come_out_as_torch_load_gives_them(kind: str, tmp_path: Path) -> None:
    path = save(NUMBERS[kind], tmp_path / "x.pth")
    loaded = torch.load(path, weights_only=False)
    expected = np.stack(list(map(np.asarray, loaded))) if isinstance(loaded, list) else np.asarray(loaded)
    result = read_torch_file(path)
    assert result.dtype == expected.dtype
    np.testing.assert_array_equal(result, expected)


def test_arrays_of_numpy_1_are_read(tmp_path: Path) -> None:
    new, old = save(np.arange(5), tmp_path / "new.pth"), tmp_path / "old.pth"
    with zipfile.ZipFile(new) as source, zipfile.ZipFile(old, "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name).replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    np.testing.assert_array_equal(read_torch_file(old), np.arange(5))


class Payload:
    """Pickled, it asks for a call of os.mkdir."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize(
    "wrap", [lambda x: x, lambda x: [torch.ones(2), x], lambda x: (x, 1)], ids=("alone", "listed", "paired")
)
def test_what_a_file_wants_called_is_never_called(wrap: Any, tmp_path: Path) -> None:
    path = save(wrap(Payload(tmp_path / "made")), tmp_path / "x.pth")
    with pytest.raises(DataFormatError, match=r"x\.pth: expected one tensor, array or list.*numpy\.save"):
        read_torch_file(path)
    assert not (tmp_path / "made").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "made").exists()  # the payload works: it was us who did not run it


@pytest.mark.parametrize(
    "value",
    [
        {"x": torch.ones(2)},
        torch.nn.Linear(2, 2),
        "text",
        [],
        None,
        np.array(["a"]),
        torch.ones(2, dtype=torch.bfloat16),
    ],
    ids=lambda value: type(value).__name__,
)
def test_anything_but_numbers_is_refused(value: Any, tmp_path: Path) -> None:
    with pytest.raises(DataFormatError, match=r"x\.pth: expected one tensor"):
        read_torch_file(save(value, tmp_path / "x.pth"))


def test_the_form_before_torch_1_6_and_plain_pickles_are_refused(tmp_path: Path) -> None:
    torch.save(torch.ones(2), tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "plain.pth").write_bytes(pickle.dumps([1, 2]))
    for name in ("legacy", "plain"):
        with pytest.raises(DataFormatError, match=rf"{name}\.pth: expected one tensor.*not a zip"):
            read_torch_file(tmp_path / f"{name}.pth")


def rewrite(path: Path, ending: str, content: bytes) -> Path:
    """The same archive with other content in one member."""
    changed = path.with_name("changed.pth")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(changed, "w") as target:
        for name in source.namelist():
            target.writestr(name, content if name.endswith(ending) else source.read(name))
    return changed


def test_a_tensor_that_reaches_outside_of_its_numbers_is_refused(tmp_path: Path) -> None:
    path = save(torch.arange(8.0), tmp_path / "x.pth")
    with pytest.raises(DataFormatError, match="reaches to number 7, but there are 4"):
        read_torch_file(rewrite(path, "data/0", bytes(16)))


def test_numbers_of_a_big_endian_machine_are_refused(tmp_path: Path) -> None:
    path = save(torch.arange(8.0), tmp_path / "x.pth")
    with pytest.raises(DataFormatError, match="big-endian"):
        read_torch_file(rewrite(path, "byteorder", b"big"))


def test_a_file_that_is_cut_off_anywhere_gives_one_kind_of_error(tmp_path: Path) -> None:
    content = save(torch.arange(8.0), tmp_path / "x.pth").read_bytes()
    for end in range(0, len(content), 97):
        (tmp_path / "cut.pth").write_bytes(content[:end])
        with pytest.raises(DataFormatError, match=r"cut\.pth"):
            read_torch_file(tmp_path / "cut.pth")


def test_a_program_that_is_cut_off_or_scrambled_gives_one_kind_of_error(tmp_path: Path) -> None:
    path = save(torch.arange(8.0), tmp_path / "x.pth")
    with zipfile.ZipFile(path) as archive:
        program = next(archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
    for place in range(2, len(program) - 1):
        for changed in (program[:place], program[:place] + b"t" + program[place + 1 :]):
            # A byte may not matter, as in a number of the memo; then the numbers must be those of the file.
            with contextlib.suppress(DataFormatError):
                numbers = read_torch_file(rewrite(path, "data.pkl", changed))
                assert set(numbers.ravel().tolist()) <= set(range(8))
