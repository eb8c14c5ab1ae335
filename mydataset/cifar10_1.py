"""CIFAR-10 with a test part that was collected anew nine years later (Recht et al., 2018)."""

from dataclasses import dataclass
from typing import Literal, get_args

from deepfailguard.data.assembling import RawParts, assemble
from deepfailguard.data.base import Splits
from deepfailguard.data.converting import RawImages
from deepfailguard.data.locating import Form, locate
from deepfailguard.data.reading import read_array
from deepfailguard.errors import ConfigurationError
from mydataset._cifar10 import CLASSES, read_cifar10

__all__ = ["CIFAR101"]

Version = Literal["v4", "v6"]


@dataclass(frozen=True, slots=True)
class CIFAR101:
    """Train and calibration part of CIFAR-10, test part of CIFAR-10.1: 2,021 (v4) or 2,000 (v6) images.

    Attributes:
        version: ``v4`` or ``v6``; v6 has equally many images of each class.
        root: folder with CIFAR-10 in any of its forms and CIFAR10_1/cifar10.1_v6_data.npy, ..._labels.npy.
        limit: use at most the first `limit` training and test images.
    """

    version: Version = "v6"
    root: str = "mydataset/data"
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.version not in get_args(Version):
            raise ConfigurationError(f"CIFAR-10.1 has the versions {get_args(Version)}, got {self.version!r}")

    def load(self) -> Splits:
        """Read both data sets and put the new test part in the place of the old one.

        The splits bear CIFAR-10's name, since versions and guards of it are what is tested here.
        """
        name = f"cifar10_1_{self.version}"
        images, labels = locate(name, self.root, [self._form], self._obtain).files
        test = RawImages(str(images), read_array(images), read_array(labels))
        return assemble("cifar10", RawParts(read_cifar10(self.root).training, test), CLASSES, self.limit)

    @property
    def _form(self) -> Form:
        names = (f"cifar10.1_{self.version}_{what}.npy" for what in ("data", "labels"))
        return Form("the published arrays", tuple(f"CIFAR10_1/{name}" for name in names))

    @property
    def _obtain(self) -> str:
        return "copy the datasets/ folder of the CIFAR-10.1 project (modestyachts/CIFAR-10.1 on GitHub) to CIFAR10_1/"
