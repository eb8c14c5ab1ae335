"""What a version is made of, before it exists."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from torch import nn

from deepfailguard.errors import ConfigurationError
from deepfailguard.identity import describe, digest

__all__ = ["Architecture", "Loss", "Recipe", "VersionSpec", "architecture_name"]

Loss = Literal["cross_entropy", "biased_cross_entropy", "mean_squared_error", "hinge", "nll_on_probabilities"]
Optimizer = Literal["sgd", "adam", "adamw"]
Schedule = Literal["constant", "cosine", "one_cycle"]

# Raise it when the training loop changes in a way that gives other weights for the same recipe.
_LOOP_GENERATION = 1


@runtime_checkable
class Architecture(Protocol):
    """Builds an untrained network; its constructor's arguments are the architecture's settings."""

    def build(self, classes: int) -> nn.Module:
        """A network from images (B, C, H, W) inside the bounds to logits (B, classes)."""
        ...


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a version is trained.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step.
        optimizer: which one.
        learning_rate: its (peak) learning rate.
        weight_decay: its weight decay.
        momentum: of SGD.
        schedule: of the learning rate over all steps.
        loss: which loss.
        label_smoothing: of the cross-entropy losses.
        gradient_clip: largest gradient norm, None for no limit.
        flip_and_crop: whether images are randomly mirrored and shifted by up to an eighth of their size.
        mixed_precision: autocast (bf16 on a CPU, fp16 with loss scaling on a GPU).
        patience: end training after this many epochs without a better validation loss (None: never).
        validation_share: share of the training images held out to measure that, used only with patience.
    """

    epochs: int = 10
    batch_size: int = 128
    optimizer: Optimizer = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    momentum: float = 0.9
    schedule: Schedule = "one_cycle"
    loss: Loss = "cross_entropy"
    label_smoothing: float = 0.0
    gradient_clip: float | None = None
    flip_and_crop: bool = False
    mixed_precision: bool = False
    patience: int | None = None
    validation_share: float = 0.1

    def __post_init__(self) -> None:
        for name, allowed in (("optimizer", Optimizer), ("schedule", Schedule), ("loss", Loss)):
            if getattr(self, name) not in get_args(allowed):
                came = getattr(self, name)
                raise ConfigurationError(f"recipe.{name} must be one of {', '.join(get_args(allowed))}, got {came!r}")
        for name in ("epochs", "batch_size", "learning_rate"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not value > 0:
                raise ConfigurationError(f"recipe.{name} must be a positive number, got {value!r}")
        if self.patience is not None and self.patience < 1:
            raise ConfigurationError(f"recipe.patience must be at least 1, or None for never, got {self.patience}")
        if not 0 < self.validation_share < 1:
            raise ConfigurationError(f"recipe.validation_share must lie between 0 and 1, got {self.validation_share}")

    def with_(self, **changes: Any) -> "Recipe":
        """A copy with other settings."""
        return replace(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


@dataclass(frozen=True, slots=True)
class VersionSpec:
    """Everything that determines a version's weights, except the training images.

    Attributes:
        dataset: name of the data set.
        architecture: what is trained.
        recipe: how it is trained.
        seed: of initial weights, order of images and dropout.
        faults: names of the faults that shaped this spec or its training images, for people to read;
            what they changed is in the architecture, the recipe and the images.
    """

    dataset: str
    architecture: Architecture
    recipe: Recipe = field(default_factory=Recipe)
    seed: int = 0
    faults: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name for people, e.g. ``compact_resnet+label_noise-s0``."""
        return "+".join([architecture_name(self.architecture), *self.faults]) + f"-s{self.seed}"

    def key(self, classes: Sequence[str], train_fingerprint: str) -> str:
        """Identity of the version that this spec gives on these images: the same key, the same weights."""
        return digest(
            {
                "loop": _LOOP_GENERATION,
                "architecture": describe(self.architecture),
                "recipe": self.recipe.as_dict(),
                "seed": self.seed,
                "dataset": self.dataset,
                "classes": list(classes),
                "train": train_fingerprint,
            }
        )

    def with_fault(self, name: str, **changes: Any) -> "VersionSpec":
        """A copy with other parts, that names the fault which changed them."""
        return replace(self, faults=(*self.faults, name), **changes)


def architecture_name(architecture: Architecture) -> str:
    """The architecture's own `name`, or its class name in snake case."""
    name = getattr(architecture, "name", None)
    if isinstance(name, str):
        return name
    text = type(architecture).__name__
    return "".join(f"_{c.lower()}" if c.isupper() and i else c.lower() for i, c in enumerate(text))
