"""The published folder is made by the tests themselves, as the authors' programs make it."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import gaussian_kde

from deepfailguard.boundary.published import PublishedCache, PublishedName
from deepfailguard.errors import ConfigurationError, CorruptFileError, DataFormatError, DataNotFoundError

SIZES = np.array([0.5, 0.0, 1.25, np.nan, np.inf])
LABELS = np.array([3, 1, 2, 0, 9])


def write_version(folder: Path, model: str, bug: int) -> None:
    cached, densities = folder / "test_information_cached", folder / "kde_results"
    cached.mkdir(exist_ok=True)
    densities.mkdir(exist_ok=True)
    np.save(cached / f"CIFAR10_{model}_bug{bug}_distances.npy", SIZES)
    np.save(cached / f"CIFAR10_{model}_bug{bug}_dnn_labels.npy", LABELS)
    suffix = f"_bug{bug}" if bug in range(1, 10) else ""
    for kind, offset in (("correct", 10 * bug), ("wrong", 10 * bug + 5)):
        with (densities / f"{model}_CIFAR10{suffix}_{kind}.pkl").open("wb") as file:
            pickle.dump(gaussian_kde(np.arange(4.0) ** 2 + offset), file, protocol=4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for model, bug in (("resnet", 0), ("resnet", 3), ("vgg16", 0), ("resnet", 11)):
        write_version(tmp_path, model, bug)
    for name, truth in (("CIFAR10", 0), ("CIFAR10_bug11", 11), ("CIFAR10_bug12", 12)):
        np.save(tmp_path / "test_information_cached" / f"{name}_ground_truth.npy", np.full(5, truth))
    return tmp_path


def array(folder: Path, name: str) -> Path:
    return folder / "test_information_cached" / f"CIFAR10_{name}.npy"


def test_versions_are_listed(folder: Path) -> None:
    assert PublishedCache(folder).versions() == [
        PublishedName("CIFAR10", "resnet", 0),
        PublishedName("CIFAR10", "resnet", 3),
        PublishedName("CIFAR10", "resnet", 11),
        PublishedName("CIFAR10", "vgg16", 0),
    ]


def test_a_version_is_what_was_published(folder: Path) -> None:
    version = PublishedCache(folder).load("CIFAR10", "resnet", 3)
    assert (version.dataset, version.model, version.bug) == ("CIFAR10", "resnet", 3)
    assert version.distances.labels.tolist() == LABELS.tolist()
    assert version.distances.labels.dtype == torch.int64
    assert version.distances.size.tolist() == [0.5, 0.0, 1.25, 0.0, 0.0]
    assert version.distances.size.dtype == torch.float32
    assert version.distances.found.tolist() == [True, False, True, False, False]
    assert version.correct_kde.points.tolist() == [30.0, 31.0, 34.0, 39.0]
    assert version.wrong_kde.points.tolist() == [35.0, 36.0, 39.0, 44.0]


@pytest.mark.parametrize("bug", [10, 11, 12])
def test_faults_of_test_data_use_the_density_of_the_sound_version(folder: Path, bug: int) -> None:
    np.save(array(folder, f"resnet_bug{bug}_distances"), SIZES)
    np.save(array(folder, f"resnet_bug{bug}_dnn_labels"), LABELS)
    with (folder / "kde_results" / "resnet_CIFAR10_correct.pkl").open("wb") as file:
        pickle.dump(gaussian_kde([1.0, 2.0, 5.0]), file, protocol=4)
    assert PublishedCache(folder).load("CIFAR10", "resnet", bug).correct_kde.points.tolist() == [1.0, 2.0, 5.0]


@pytest.mark.parametrize(("bug", "truth"), [(0, 0), (8, 0), (10, 0), (11, 11), (12, 12)])
def test_shifted_test_sets_have_their_own_truth(folder: Path, bug: int, truth: int) -> None:
    got = PublishedCache(folder).truth("CIFAR10", bug)
    assert got.dtype == torch.int64
    assert got.tolist() == [truth] * 5


def test_an_empty_folder_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match=r"expected files like CIFAR10_resnet_bug0_distances\.npy"):
        PublishedCache(tmp_path).versions()
    with pytest.raises(DataNotFoundError, match=r"GTSRB_ground_truth\.npy"):
        PublishedCache(tmp_path).truth("GTSRB", 0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (("MNIST", "resnet", 0), "dataset must be one of CIFAR10"),
        (("CIFAR10", "vgg", 0), "model must be one of resnet"),
        (("CIFAR10", "vgg16", 13), "bug must be one of 0, 1"),
    ],
)
def test_misspelt_names_are_refused(folder: Path, name: tuple[str, str, int], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        PublishedCache(folder).load(*name)


def test_a_missing_density_is_named(folder: Path) -> None:
    (folder / "kde_results" / "vgg16_CIFAR10_wrong.pkl").unlink()
    with pytest.raises(DataNotFoundError, match=r"vgg16_CIFAR10_wrong\.pkl"):
        PublishedCache(folder).load("CIFAR10", "vgg16", 0)


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("dnn_labels", LABELS[:4], "holds 5 distances, but .* 4 labels"),
        ("dnn_labels", LABELS.astype(float), "expected integer labels"),
        ("dnn_labels", -LABELS, "smallest -9"),
        ("distances", -SIZES, "expected distances >= 0"),
        ("distances", SIZES[None], "expected distances"),
        ("distances", LABELS, "expected distances"),
    ],
)
def test_arrays_that_do_not_fit_are_named(folder: Path, kind: str, content: np.ndarray, message: str) -> None:
    np.save(array(folder, f"vgg16_bug0_{kind}"), content)
    with pytest.raises(DataFormatError, match=rf"vgg16_bug0_.*{message}"):
        PublishedCache(folder).load("CIFAR10", "vgg16", 0)


def test_arrays_are_read_without_pickle(folder: Path) -> None:
    np.save(array(folder, "vgg16_bug0_distances"), np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(CorruptFileError, match="vgg16_bug0_distances"):
        PublishedCache(folder).load("CIFAR10", "vgg16", 0)


def test_torn_arrays_and_archives_are_named(folder: Path) -> None:
    path = array(folder, "vgg16_bug0_distances")
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(CorruptFileError, match=r"vgg16_bug0_distances.*not a whole array"):
        PublishedCache(folder).load("CIFAR10", "vgg16", 0)
    with path.open("wb") as file:
        np.savez(file, a=SIZES)
    with pytest.raises(CorruptFileError, match="is an archive"):
        PublishedCache(folder).load("CIFAR10", "vgg16", 0)
