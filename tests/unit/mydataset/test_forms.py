"""Each accepted form of a data set gives the same images as the others."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from deepfailguard.data.base import Splits
from deepfailguard.errors import ConfigurationError, DataFormatError, DataNotFoundError
from mydataset.ats import ATS
from mydataset.cifar10 import CIFAR10
from mydataset.cifar10_1 import CIFAR101
from mydataset.covidx9a import COVIDX9A
from mydataset.digits import Digits
from mydataset.fashion_mnist import FashionMNIST
from mydataset.gtsrb import GTSRB
from mydataset.mnist import MNIST
from tests.unit.mydataset import made_data


def fingerprints(splits: Splits) -> list[str]:
    return [part.fingerprint for part in (splits.train, splits.calibration, splits.test)]


def expected_test(shape: tuple[int, ...]) -> torch.Tensor:
    """The made test images, (B, C, H, W)."""
    pixels = made_data.made_parts(shape)[1][0]
    return torch.from_numpy(pixels).float() / 255


def write_cifar_arrays(root: Path) -> None:
    folder = root / "CIFAR10"
    folder.mkdir(parents=True)
    (x_train, y_train), (x_test, y_test) = made_data.made_parts((32, 32, 3))
    for name, values in (("x_train", x_train), ("y_train", y_train), ("x_test", x_test), ("y_test", y_test)):
        np.save(folder / f"{name}.npy", values)


CIFAR_FORMS: dict[str, Callable[[Path], None]] = {
    "npz": lambda root: made_data.write_cifar_npz(root / "CIFAR10/cifar10.npz"),
    "npz in the root": lambda root: made_data.write_cifar_npz(root / "cifar10.npz"),
    "npy": write_cifar_arrays,
    "binary": made_data.write_cifar_binary,
}


@pytest.mark.parametrize("form", CIFAR_FORMS)
def test_every_form_of_cifar10_gives_the_same_images(form: str, tmp_path: Path) -> None:
    CIFAR_FORMS[form](tmp_path)
    splits = CIFAR10(str(tmp_path)).load()
    assert torch.equal(splits.test.images, expected_test((32, 32, 3)).permute(0, 3, 1, 2))
    assert splits.test.labels.tolist() == made_data.made_parts((1,))[1][1].tolist()
    assert splits.classes[0] == "airplane"
    made_data.write_cifar_npz(tmp_path / "other/cifar10.npz")
    assert fingerprints(splits) == fingerprints(CIFAR10(str(tmp_path / "other")).load())


def test_the_pickled_form_of_cifar10_is_refused_with_its_alternatives(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py/data_batch_1").write_bytes(b"\x80\x02.")
    with pytest.raises(DataFormatError, match=r"pickles, which run code when they are read.*refused") as caught:
        CIFAR10(str(tmp_path)).load()
    for alternative in ("CIFAR10/cifar10.npz", "cifar-10-batches-bin/data_batch_1.bin", "CIFAR-10 binary version"):
        assert alternative in str(caught.value)


def test_cifar10_1_changes_the_test_part_alone(tmp_path: Path) -> None:
    made_data.write_cifar_binary(tmp_path)
    made_data.write_cifar10_1(tmp_path, "v6")
    own, shifted = CIFAR10(str(tmp_path)).load(), CIFAR101("v6", str(tmp_path)).load()
    assert fingerprints(own)[:2] == fingerprints(shifted)[:2]
    assert own.test.fingerprint != shifted.test.fingerprint
    assert (own.classes, own.bounds, own.input_shape) == (shifted.classes, shifted.bounds, shifted.input_shape)
    expected = torch.from_numpy(made_data.made(made_data.TEST, (32, 32, 3), 3)[0]).permute(0, 3, 1, 2) / 255
    assert torch.equal(shifted.test.images, expected)
    with pytest.raises(DataNotFoundError, match=r"cifar10\.1_v4_data\.npy"):
        CIFAR101("v4", str(tmp_path)).load()
    with pytest.raises(ConfigurationError, match=r"versions \('v4', 'v6'\), got 'v5'"):
        CIFAR101("v5", str(tmp_path))  # type: ignore[arg-type]


@pytest.mark.parametrize("packed", [False, True])
def test_mnist_files_lie_in_torchvisions_folder_or_in_the_root(packed: bool, tmp_path: Path) -> None:
    made_data.write_idx(tmp_path / "FashionMNIST/raw", packed)
    nested = FashionMNIST(str(tmp_path)).load()
    direct = FashionMNIST(str(tmp_path / "FashionMNIST/raw")).load()
    assert torch.equal(nested.test.images[:, 0], expected_test((28, 28)))
    assert fingerprints(nested) == fingerprints(direct)
    assert nested.classes[9] == "ankle boot"
    with pytest.raises(DataNotFoundError, match="MNIST/raw/train-images-idx3-ubyte"):
        MNIST(str(tmp_path)).load()  # the neighbour's files are not taken for its own


def test_a_label_file_of_another_length_is_refused(tmp_path: Path) -> None:
    made_data.write_idx(tmp_path / "raw")
    (tmp_path / "raw" / made_data.IDX[1]).write_bytes(b"\0\0\x08\x01\0\0\0\x03\0\1\2")
    with pytest.raises(DataFormatError, match=r"each of the 50 images, got labels of dtype uint8 and shape \(3,\)"):
        MNIST(str(tmp_path / "raw")).load()


PUBLISHED: dict[str, dict[str, Any]] = {
    "bytes in npy": {},
    "floats in npy": {"scaled": True},
    "bytes in pth": {"ending": ".pth"},
    "floats in pth": {"ending": ".pth", "scaled": True},
}


@pytest.mark.parametrize("form", PUBLISHED)
def test_published_arrays_of_either_scale_and_ending_are_alike(form: str, tmp_path: Path) -> None:
    made_data.write_arrays(tmp_path / "ATS", **PUBLISHED[form])
    splits = ATS(str(tmp_path)).load()
    assert torch.allclose(splits.test.images, expected_test((3, 32, 32)), atol=1e-7, rtol=0)
    assert splits.classes == ("0", "1", "2", "3", "4")
    assert ATS(str(tmp_path), size=16).load().input_shape == (3, 16, 16)


def test_grey_arrays_of_covidx9a_become_three_equal_channels(tmp_path: Path) -> None:
    made_data.write_arrays(tmp_path / "COVIDX9A", shape=(24, 24))
    images = COVIDX9A(str(tmp_path)).load().test.images
    assert torch.equal(images, expected_test((24, 24))[:, None].expand(-1, 3, -1, -1))


def test_pickled_and_mismatched_arrays_are_named(tmp_path: Path) -> None:
    made_data.write_arrays(tmp_path / "ATS")
    np.save(tmp_path / "ATS/y_test.npy", np.arange(3))
    with pytest.raises(
        DataFormatError, match=r"x_test\.npy: expected one whole-number label for each of the 20 images"
    ):
        ATS(str(tmp_path)).load()
    np.save(tmp_path / "ATS/x_train.npy", np.array([None, {}]), allow_pickle=True)
    with pytest.raises(DataFormatError, match=r"ATS/x_train\.npy: .*pickled objects are refused"):
        ATS(str(tmp_path)).load()


def test_torchvisions_gtsrb_is_read_with_the_labels_of_its_table(tmp_path: Path) -> None:
    made_data.write_gtsrb(tmp_path)
    splits = GTSRB(str(tmp_path), size=32).load()
    assert (splits.input_shape, len(splits.classes)) == ((3, 32, 32), 43)
    assert splits.test.labels.bincount().tolist() == [4] * made_data.CLASSES
    table = tmp_path / "gtsrb/GT-final_test.csv"
    table.write_text(table.read_text().replace("Filename", "File"))
    with pytest.raises(DataFormatError, match=r"GT-final_test\.csv: expected a table with the columns Filename"):
        GTSRB(str(tmp_path)).load()


def test_gtsrb_prefers_the_published_arrays(tmp_path: Path) -> None:
    made_data.write_gtsrb(tmp_path)
    made_data.write_arrays(tmp_path / "GTSRB")
    assert GTSRB(str(tmp_path)).load().input_shape == (3, 32, 32)


def test_digits_are_those_of_scikit_learn() -> None:
    splits, data = Digits().load(), load_digits()
    parts = (splits.train, splits.calibration, splits.test)
    ours = torch.cat([part.images for part in parts]).flatten(1)
    expected = torch.from_numpy(data.data).float() / 16
    assert sorted(map(tuple, ours.tolist())) == sorted(map(tuple, expected.tolist()))
    share = splits.test.labels.bincount() / torch.from_numpy(data.target).bincount()
    assert ((share - 0.2).abs() < 0.004).all()
