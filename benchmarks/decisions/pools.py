"""The pools that decisions are measured on: small versions of five families, sound and faulty, trained once."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import torch

from deepfailguard.data.base import ImageSet, Splits
from deepfailguard.faults.channels import StuckChannels
from deepfailguard.faults.program import MissingActivation
from deepfailguard.faults.training_data import LabelNoise, TooLittleData
from deepfailguard.faults.weights import GaussianWeightNoise
from deepfailguard.pipeline.training import TrainRequest, train_version
from deepfailguard.seeding import generator
from deepfailguard.training.trainer import Trainer
from deepfailguard.versions.card import IdentityCard
from deepfailguard.versions.pool import Pool
from deepfailguard.versions.spec import Recipe
from mydataset.cifar10 import CIFAR10
from mydataset.digits import Digits
from mydataset.fashion_mnist import FashionMNIST
from mymodel.compact_alexnet import CompactAlexNet
from mymodel.compact_densenet import CompactDenseNet
from mymodel.compact_resnet import CompactResNet
from mymodel.compact_squeezenet import CompactSqueezeNet
from mymodel.compact_vgg import CompactVGG

__all__ = [
    "DATA_NAMES",
    "DEVELOPMENT",
    "FAMILIES",
    "FAULTS",
    "DataName",
    "Draw",
    "Member",
    "PoolPlan",
    "Sizes",
    "train_pool",
]

DataName = Literal["digits", "fashion_mnist", "cifar10"]
DATA_NAMES: Final[tuple[DataName, ...]] = ("digits", "fashion_mnist", "cifar10")
DEVELOPMENT: Final = 100  # seeds from here on never see the official test part: methods are made on them
FAULTS: Final[dict[str, Any]] = {
    "label_noise": LabelNoise(rate=0.3),
    "too_little_data": TooLittleData(share=0.1),
    "missing_activation": MissingActivation(which="all", share=0.5),
    "gaussian_weight_noise": GaussianWeightNoise(sigma=0.3),
    "stuck_channels": StuckChannels(value=5.0, rate=0.02),
}
FAMILIES: Final = (CompactResNet, CompactAlexNet, CompactDenseNet, CompactVGG, CompactSqueezeNet)


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many images of each part, at most."""

    train: int = 6000
    calibration: int = 3000
    test: int = 4000


@dataclass(frozen=True, slots=True)
class Draw:
    """One draw of a data set's images into three parts; another seed gives other images.

    Attributes:
        data: which data set.
        seed: from `DEVELOPMENT` on, the test part comes from the training images as well.
        root: where the data files lie.
        sizes: of the parts.
    """

    data: DataName
    seed: int
    root: str = field(repr=False)
    sizes: Sizes = field(default_factory=Sizes)

    def load(self) -> Splits:
        """Draw."""
        whole = _whole(self.data, self.root)
        pieces = (whole.train, whole.calibration)
        known = ImageSet(torch.cat([p.images for p in pieces]), torch.cat([p.labels for p in pieces]))
        order = torch.randperm(len(known), generator=generator(self.seed, "decision benchmark", self.data))
        if self.seed >= DEVELOPMENT:
            test_size = min(self.sizes.test, len(known) // 4)
            test, order = known.take(order[:test_size]), order[test_size:]
        else:
            test = whole.test.take(slice(self.sizes.test))
        calibration_size = min(self.sizes.calibration, len(order) // 3)
        calibration, order = known.take(order[:calibration_size]), order[calibration_size:]
        return whole.with_parts(known.take(order[: self.sizes.train]), calibration, test)


@dataclass(frozen=True, slots=True)
class Member:
    """One version of a pool.

    Attributes:
        family: of its architecture.
        fault: that was injected; None for a sound version.
    """

    family: str
    fault: str | None

    def __str__(self) -> str:
        return f"{self.family}+{self.fault}" if self.fault else self.family


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """What a pool holds: each family sound and with every fault.

    Attributes:
        draw: the data.
        folder: of the pool.
        epochs: of training.
        faults: names of those of `FAULTS` that are injected.
    """

    draw: Draw
    folder: Path
    epochs: int = 5
    faults: tuple[str, ...] = tuple(FAULTS)

    @property
    def members(self) -> tuple[Member, ...]:
        """Who is in the pool, in the order of `requests`: sound ones first."""
        return tuple(Member(family.__name__, fault) for fault in (None, *self.faults) for family in FAMILIES)

    def requests(self) -> Iterator[TrainRequest]:
        """The versions, sound ones first."""
        source, recipe = _Loaded(self.draw), Recipe(epochs=self.epochs, learning_rate=3e-3, weight_decay=0.01)
        channels = source.splits.input_shape[0]
        for faults in ((), *((FAULTS[name],) for name in self.faults)):
            for family in FAMILIES:
                yield TrainRequest(source, family(channels=channels), recipe, faults, self.draw.seed)


def train_pool(plan: PoolPlan, device: torch.device, say: Callable[[str], None]) -> tuple[Pool, list[IdentityCard]]:
    """The versions of a plan, from the pool or trained anew."""
    pool = Pool(plan.folder / f"{plan.draw.data}-{plan.draw.seed}")
    cards = []
    for request in plan.requests():
        filed = train_version(request, pool, Trainer(device))
        if not filed.found_again:
            say(filed.describe().splitlines()[0])
        cards.append(filed.card)
    return pool, cards


class _Loaded:
    """A source that reads its files once."""

    def __init__(self, draw: Draw) -> None:
        self.splits = draw.load()

    def load(self) -> Splits:
        """The splits."""
        return self.splits


def _whole(data: DataName, root: str) -> Splits:
    if data == "digits":
        return Digits().load()
    return (FashionMNIST if data == "fashion_mnist" else CIFAR10)(root=root).load()
