"""Readers against numpy, torchvision and hand-made bytes."""

import gzip
import importlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deepfailguard.data.reading import read_array, read_idx, read_npz, read_records
from deepfailguard.errors import DataFormatError
from deepfailguard.torchvision_import import import_torchvision


def idx(values: np.ndarray[Any, Any]) -> bytes:
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


def test_idx_files_are_read_as_torchvision_reads_them(tmp_path: Path) -> None:
    import_torchvision()
    oracle = importlib.import_module("torchvision.datasets.mnist").read_image_file
    pixels = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)
    (tmp_path / "x").write_bytes(idx(pixels))
    (tmp_path / "x.gz").write_bytes(gzip.compress(idx(pixels)))
    for name in ("x", "x.gz"):
        np.testing.assert_array_equal(read_idx(tmp_path / name), pixels)
    np.testing.assert_array_equal(oracle(str(tmp_path / "x")).numpy(), pixels)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected an idx file of bytes"),
        (b"\x00\x00\x0d\x01" + bytes(8), r"starts with 00 00 08\), got 00 00 0d 01"),
        (idx(np.zeros((2, 3), np.uint8))[:-1], r"promises the shape \(2, 3\), but 5 bytes follow"),
        (idx(np.zeros((2, 3), np.uint8)) + b"x", "but 7 bytes follow"),
        (b"\x00\x00\x08\x03" + bytes(3), "3 bytes|-9 bytes"),
    ],
    ids=["empty", "floats", "cut off", "too long", "half a header"],
)
def test_damaged_idx_files_are_refused_by_name(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "labels").write_bytes(content)
    with pytest.raises(DataFormatError, match=message) as caught:
        read_idx(tmp_path / "labels")
    assert str(tmp_path / "labels") in str(caught.value)


def test_a_damaged_gzip_file_is_refused(tmp_path: Path) -> None:
    packed = gzip.compress(idx(np.zeros((2, 3), np.uint8)))
    for content in (b"not gzip", packed[:-4], packed[:12] + b"\xff" + packed[13:]):
        (tmp_path / "x.gz").write_bytes(content)
        with pytest.raises(DataFormatError, match=r"x\.gz: expected an idx file of bytes, but it cannot be read"):
            read_idx(tmp_path / "x.gz")


def test_arrays_come_back_from_npy_pth_and_npz(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 6).reshape(2, 3)
    np.save(tmp_path / "x.npy", values)
    torch.save(torch.from_numpy(values), tmp_path / "x.pth")
    np.savez_compressed(tmp_path / "x.npz", b=values + 1, a=values)
    np.testing.assert_array_equal(read_array(tmp_path / "x.npy"), values)
    np.testing.assert_array_equal(read_array(tmp_path / "x.pth"), values)
    first, second = read_npz(tmp_path / "x.npz", ["a", "b"])
    np.testing.assert_array_equal(first, values)
    np.testing.assert_array_equal(second, values + 1)


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    objects = np.array([{"a": 1}, None], dtype=object)
    np.save(tmp_path / "x.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "x.npz", a=objects)
    with pytest.raises(DataFormatError, match=r"x\.npy: expected a \.npy file of numbers.*pickled objects are refused"):
        read_array(tmp_path / "x.npy")
    with pytest.raises(DataFormatError, match=r"x\.npz: expected a \.npz file.*pickled objects are refused"):
        read_npz(tmp_path / "x.npz", ["a"])


def test_cut_off_arrays_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "whole.npy", np.arange(50))
    np.savez(tmp_path / "whole.npz", a=np.arange(50))
    for ending in (".npy", ".npz"):
        content = (tmp_path / f"whole{ending}").read_bytes()
        for end in range(0, len(content), 40):
            cut = tmp_path / f"cut{ending}"
            cut.write_bytes(content[:end])
            with pytest.raises(DataFormatError, match=rf"cut\{ending}: expected"):
                read_array(cut) if ending == ".npy" else read_npz(cut, ["a"])


def test_a_missing_name_and_an_unknown_ending_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.arange(3))
    with pytest.raises(DataFormatError, match=r"with the arrays a, x_test, but.*no item named 'x_test\.npy'"):
        read_npz(tmp_path / "x.npz", ["a", "x_test"])
    with pytest.raises(DataFormatError, match=r"expected a file ending in \.npy, \.pth or \.pt, got '\.mat'"):
        read_array(tmp_path / "x.mat")


def test_records_of_several_files_follow_each_other(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes([1, 2, 3, 4]))
    (tmp_path / "b").write_bytes(bytes([5, 6]))
    assert read_records([tmp_path / "a", tmp_path / "b"], 2).tolist() == [[1, 2], [3, 4], [5, 6]]
    (tmp_path / "b").write_bytes(bytes([5]))
    with pytest.raises(DataFormatError, match=r"b: expected records of 2 bytes, got 1 bytes"):
        read_records([tmp_path / "a", tmp_path / "b"], 2)
