"""Import of the distances that the authors of DeepFailGuard published.

They lie in ``test_information_cached/*.npy`` and ``kde_results/*.pkl``; with them the published table can be
computed again without training.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepfailguard.boundary.published_kde import PublishedKde, read_published_kde
from deepfailguard.errors import ConfigurationError, CorruptFileError, DataFormatError, DataNotFoundError
from deepfailguard.types import Distances

__all__ = ["BUGS", "DATASETS", "MODELS", "PublishedCache", "PublishedName", "PublishedVersion"]

DATASETS = ("CIFAR10", "ATS", "CTSD", "GTSRB", "TSCD", "TTS", "COVIDX9A")
MODELS = ("resnet", "alexnet", "densenet", "squeezenet", "vgg16")
BUGS = tuple(range(13))

_SHIFTED = (11, 12)  # natural shifts: other test sets, with truths of their own
_TRAINED = range(1, 10)  # faults of training: the others share the density of the sound version
_DISTANCES = re.compile(rf"({'|'.join(DATASETS)})_({'|'.join(MODELS)})_bug(\d+)_distances\.npy")


@dataclass(frozen=True, slots=True, order=True)
class PublishedName:
    """Which of the published versions.

    Attributes:
        dataset: one of `DATASETS`.
        model: one of `MODELS`.
        bug: number of the fault, 0 for none, one of `BUGS`.
    """

    dataset: str
    model: str
    bug: int

    def __post_init__(self) -> None:
        for field, allowed in (("dataset", DATASETS), ("model", MODELS), ("bug", BUGS)):
            if getattr(self, field) not in allowed:
                names = ", ".join(map(str, allowed))
                raise ConfigurationError(f"{field} must be one of {names}, got {getattr(self, field)!r}")


@dataclass(frozen=True, slots=True)
class PublishedVersion:
    """What was published of one version.

    Attributes:
        dataset: one of `DATASETS`.
        model: one of `MODELS`.
        bug: number of the fault.
        distances: on the test images. Whether the search had crossed was not published: `found` is true
            wherever a positive finite size was.
        correct_kde: density of the distances of right answers on the calibration images.
        wrong_kde: the same of wrong answers.
    """

    dataset: str
    model: str
    bug: int
    distances: Distances
    correct_kde: PublishedKde
    wrong_kde: PublishedKde


@dataclass(frozen=True, slots=True)
class PublishedCache:
    """The published folder (``input_information``).

    Attributes:
        folder: holds ``test_information_cached`` and ``kde_results``.
    """

    folder: Path

    def versions(self) -> list[PublishedName]:
        """The versions whose distances are there, sorted.

        Raises:
            DataNotFoundError: none is.
        """
        cached = Path(self.folder) / "test_information_cached"
        matches = [_DISTANCES.fullmatch(path.name) for path in cached.glob("*_distances.npy")]
        found = [PublishedName(m[1], m[2], int(m[3])) for m in matches if m and int(m[3]) in BUGS]
        if not found:
            raise DataNotFoundError(
                f"no published distances in {cached}: expected files like CIFAR10_resnet_bug0_distances.npy; "
                "download the authors' input_information folder and give its path"
            )
        return sorted(found)

    def truth(self, dataset: str, bug: int) -> Tensor:
        """True labels (B,) int64 of the test images that a version with this fault was asked about."""
        PublishedName(dataset, MODELS[0], bug)
        middle = f"_bug{bug}" if bug in _SHIFTED else ""
        return _labels(self._array_path(f"{dataset}{middle}_ground_truth.npy"))

    def load(self, dataset: str, model: str, bug: int) -> PublishedVersion:
        """Read one version.

        Raises:
            DataNotFoundError: one of its files is not there.
            DataFormatError: they do not fit together or are not what they should be.
            CorruptFileError: one of them is damaged.
        """
        name = PublishedName(dataset, model, bug)
        suffix = f"_bug{bug}" if bug in _TRAINED else ""
        densities = Path(self.folder) / "kde_results"
        return PublishedVersion(
            dataset,
            model,
            bug,
            self._distances(name),
            read_published_kde(densities / f"{model}_{dataset}{suffix}_correct.pkl"),
            read_published_kde(densities / f"{model}_{dataset}{suffix}_wrong.pkl"),
        )

    def _distances(self, name: PublishedName) -> Distances:
        stem = f"{name.dataset}_{name.model}_bug{name.bug}"
        path = self._array_path(f"{stem}_distances.npy")
        labels = _labels(self._array_path(f"{stem}_dnn_labels.npy"))
        numbers = _array(path)
        if numbers.dtype.kind != "f" or numbers.ndim != 1 or (numbers < 0).any():
            raise DataFormatError(f"{path}: expected distances >= 0 of shape (B,), got {_shown(numbers)}")
        if len(numbers) != len(labels):
            raise DataFormatError(
                f"{path} holds {len(numbers)} distances, but {stem}_dnn_labels.npy {len(labels)} labels; "
                "they are of different test sets: download both again"
            )
        size = torch.from_numpy(numbers.astype(np.float32))
        found = size.isfinite() & (size > 0)
        return Distances(labels, torch.where(found, size, 0.0), found)

    def _array_path(self, name: str) -> Path:
        return Path(self.folder) / "test_information_cached" / name


def _labels(path: Path) -> Tensor:
    labels = _array(path)
    if labels.dtype.kind not in "iu" or labels.ndim != 1 or (labels < 0).any():
        raise DataFormatError(f"{path}: expected integer labels >= 0 of shape (B,), got {_shown(labels)}")
    return torch.from_numpy(labels.astype(np.int64))


def _array(path: Path) -> NDArray[Any]:
    if not path.is_file():
        raise DataNotFoundError(f"no file {path}; is {path.parent.parent} the published input_information folder?")
    try:
        loaded = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise CorruptFileError(f"{path} is not a whole array file: {error}; download it again") from error
    if not isinstance(loaded, np.ndarray):
        raise CorruptFileError(f"{path} is an archive, expected one array")
    return loaded


def _shown(array: NDArray[Any]) -> str:
    least = f", smallest {array.min()}" if array.size and array.dtype.kind in "iuf" else ""
    return f"{array.dtype} {array.shape}{least}"
