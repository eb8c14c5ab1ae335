"""The paper's program faults, 1 to 6: mistakes in the code that builds and trains a version."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, get_args

from deepfailguard.errors import ConfigurationError, FaultNotApplicableError
from deepfailguard.faults.base import ActsOn, Fault
from deepfailguard.faults.layer_edits import OtherKernelSize, WithoutActivations, is_activation, takes_kernel_size
from deepfailguard.faults.structure import (
    Edit,
    Edited,
    Which,
    choose,
    named_layers,
    shallower_of,
    skeleton,
    weighted_layers,
)
from deepfailguard.identity import describe
from deepfailguard.types import Change, Receipt
from deepfailguard.versions.spec import Loss, VersionSpec

__all__ = ["MissingActivation", "Shallower", "TooFewEpochs", "WrongFilterSize", "WrongLearningRate", "WrongLoss"]


@dataclass(frozen=True, slots=True)
class Shallower:
    """Fault 1: a network with fewer layers than intended.

    What fewer layers mean is the architecture's own business: see its `shallower` method.
    """

    name: ClassVar[str] = "shallower"
    acts_on: ClassVar[ActsOn] = "program"
    number: ClassVar[int | None] = 1

    def apply(self, target: VersionSpec, seed: int) -> tuple[VersionSpec, Receipt]:
        """A spec with the shallower architecture."""
        mutant = shallower_of(target.architecture)
        before, after = skeleton(target.architecture), skeleton(mutant)
        removed = weighted_layers(before) - weighted_layers(after)
        shown = [
            f"{weighted_layers(net)} layers, {sum(p.numel() for p in net.parameters())} weights"
            for net in (before, after)
        ]
        receipt = _receipt(self, seed, [Change("architecture", shown[0], shown[1], max(0, removed))])
        return target.with_fault(self.name, architecture=mutant), receipt


@dataclass(frozen=True, slots=True)
class WrongFilterSize:
    """Fault 2: convolutions with another kernel size than intended, and weights of that size.

    Attributes:
        size: the wrong size, odd and >= 1. The default makes convolutions blind to a pixel's neighbours.
        which: all convolutions that take the size, only the first, or a random share of them.
        share: how many of them if `which` is ``share``, in (0, 1].
    """

    name: ClassVar[str] = "wrong_filter_size"
    acts_on: ClassVar[ActsOn] = "program"
    number: ClassVar[int | None] = 2

    size: int = 1
    which: Which = "all"
    share: float = 0.5

    def __post_init__(self) -> None:
        if self.size < 1 or self.size % 2 == 0:
            raise ConfigurationError(f"{self.name}: size must be odd and at least 1, got {self.size}")

    def apply(self, target: VersionSpec, seed: int) -> tuple[VersionSpec, Receipt]:
        """A spec whose architecture has the other kernel size."""
        network = skeleton(target.architecture)
        names = named_layers(network, lambda module: takes_kernel_size(module, self.size))
        if not names:
            raise FaultNotApplicableError(
                f"{target.name} has no square convolution with stride 1 whose kernel could become {self.size}; "
                "choose another size, or a convolutional architecture"
            )
        edit = OtherKernelSize(choose(names, self.which, self.share, seed), self.size)
        return _edited(self, target, seed, edit)


@dataclass(frozen=True, slots=True)
class MissingActivation:
    """Fault 3: no activation where one should be.

    Attributes:
        which: all activation modules, only the first, or a random share of them.
        share: how many of them if `which` is ``share``, in (0, 1].
    """

    name: ClassVar[str] = "missing_activation"
    acts_on: ClassVar[ActsOn] = "program"
    number: ClassVar[int | None] = 3

    which: Which = "all"
    share: float = 0.5

    def apply(self, target: VersionSpec, seed: int) -> tuple[VersionSpec, Receipt]:
        """A spec whose architecture lacks the activations."""
        names = named_layers(skeleton(target.architecture), is_activation)
        if not names:
            raise FaultNotApplicableError(
                f"{target.name} has no activation modules; "
                "write activations as modules (nn.ReLU()), since calls of functions cannot be replaced"
            )
        return _edited(self, target, seed, WithoutActivations(choose(names, self.which, self.share, seed)))


@dataclass(frozen=True, slots=True)
class WrongLearningRate:
    """Fault 4: a learning rate that is off by a factor.

    Attributes:
        factor: > 0 and not 1. The default leaves a version half trained; large factors hardly hurt
            networks with batch normalisation and can make others diverge.
    """

    name: ClassVar[str] = "wrong_learning_rate"
    acts_on: ClassVar[ActsOn] = "program"
    number: ClassVar[int | None] = 4

    factor: float = 0.01

    def __post_init__(self) -> None:
        if self.factor <= 0 or self.factor == 1:
            raise ConfigurationError(f"{self.name}: factor must be positive and not 1, got {self.factor}")

    def apply(self, target: VersionSpec, seed: int) -> tuple[VersionSpec, Receipt]:
        """A spec with the other learning rate."""
        return _with_recipe(self, target, seed, "learning_rate", target.recipe.learning_rate * self.factor)


@dataclass(frozen=True, slots=True)
class TooFewEpochs:
    """Fault 5: training ends long before it should.

    Attributes:
        share: of the epochs that are trained, in (0, 1); at least one epoch is.
    """

    name: ClassVar[str] = "too_few_epochs"
    acts_on: ClassVar[ActsOn] = "program"
    number: ClassVar[int | None] = 5

    share: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ConfigurationError(f"{self.name}: share must lie between 0 and 1, got {self.share}")

    def apply(self, target: VersionSpec, seed: int) -> tuple[VersionSpec, Receipt]:
        """A spec with fewer epochs."""
        epochs = max(1, round(target.recipe.epochs * self.share))
        return _with_recipe(self, target, seed, "epochs", epochs)


@dataclass(frozen=True, slots=True)
class WrongLoss:
    """Fault 6: a loss that does not fit the task.

    Attributes:
        loss: the wrong loss. The default forgets class 0, which costs that class whatever else is right;
            ``hinge`` costs little.
    """

    name: ClassVar[str] = "wrong_loss"
    acts_on: ClassVar[ActsOn] = "program"
    number: ClassVar[int | None] = 6

    loss: Loss = "biased_cross_entropy"

    def __post_init__(self) -> None:
        if self.loss not in get_args(Loss):
            raise ConfigurationError(f"{self.name}: loss must be one of {', '.join(get_args(Loss))}, got {self.loss!r}")

    def apply(self, target: VersionSpec, seed: int) -> tuple[VersionSpec, Receipt]:
        """A spec with the wrong loss."""
        return _with_recipe(self, target, seed, "loss", self.loss)


def _edited(fault: Fault[VersionSpec], target: VersionSpec, seed: int, edit: Edit) -> tuple[VersionSpec, Receipt]:
    # The changes are those of the edit itself, made on a network nobody uses: the receipt cannot promise too much.
    changes = edit.apply(skeleton(target.architecture))
    changed = target.with_fault(fault.name, architecture=Edited(target.architecture, edit))
    return changed, _receipt(fault, seed, changes)


def _with_recipe(
    fault: Fault[VersionSpec], target: VersionSpec, seed: int, setting: str, value: Any
) -> tuple[VersionSpec, Receipt]:
    before = getattr(target.recipe, setting)
    if value == before:
        raise FaultNotApplicableError(
            f"{fault.name} would leave recipe.{setting} of {target.name} at {before}; "
            "change the recipe or the fault's settings so that they differ"
        )
    change = Change(f"recipe.{setting}", str(before), str(value))
    changed = target.with_fault(fault.name, recipe=target.recipe.with_(**{setting: value}))
    return changed, _receipt(fault, seed, [change])


def _receipt(fault: Fault[VersionSpec], seed: int, changes: Iterable[Change]) -> Receipt:
    return Receipt(fault.name, describe(fault), seed, tuple(changes))
