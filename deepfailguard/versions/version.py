"""One trained model with its identity."""

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn

from deepfailguard.errors import ConfigurationError, WrongOutputError
from deepfailguard.identity import weights_fingerprint
from deepfailguard.types import Bounds
from deepfailguard.versions.card import IdentityCard

__all__ = ["Version", "check_logits", "device_of", "evaluating", "evened", "load_weights", "run"]


@dataclass(frozen=True)
class Version:
    """One trained model with its identity.

    Attributes:
        name: name for people, unique in an ensemble.
        model: from images (B, C, H, W) inside `bounds` to logits (B, classes).
        classes: K.
        bounds: range of the input values.
        fingerprint: hash of the model's weights.
        card: what it was made of; None for a model that deepfailguard did not train.
    """

    name: str
    model: nn.Module = field(repr=False)
    classes: int
    bounds: Bounds
    fingerprint: str
    card: IdentityCard | None = field(default=None, repr=False)

    @classmethod
    def of(cls, model: nn.Module, name: str, classes: int, bounds: Bounds | None = None) -> "Version":
        """A version from anybody's trained model."""
        return cls(name, model, classes, bounds or Bounds(), weights_fingerprint(model))

    def logits(self, images: Tensor) -> Tensor:
        """Finite logits (B, classes) of images on any device; the model runs where its weights are.

        Raises:
            WrongOutputError: the model returned something else.
        """
        logits = check_logits(run(self.model, images), len(images), self.classes, self.name)
        if not torch.isfinite(logits).all():
            raise WrongOutputError(f"version {self.name!r} returned logits that are NaN or infinite")
        return logits


@torch.no_grad()
def run(model: nn.Module, images: Tensor) -> Any:
    """What a model in evaluation mode returns for images on any device.

    It gets a copy of them: a model that works in place must reach nobody else's inputs.
    """
    with evaluating(model):
        return model(images.to(device_of(model), copy=True))


_STEPS: Final = {4: 1, 8: 2, 16: 4, 64: 8, 128: 16}  # by the largest batch that each is for
_LONGEST_STEP: Final = 32


def evened(images: Tensor) -> Tensor:
    """A batch (B, ...) filled up with copies of its last image to one of few sizes.

    Kernels are made or chosen anew for each size of batch, which takes as long as the arithmetic of a small model, and
    the few hundred that are kept are soon others: where requests come in batches of any size, this is faster.

    >>> [len(evened(torch.zeros(count, 1))) for count in (0, 1, 3, 5, 8, 9, 33, 64, 65, 130)]
    [0, 1, 3, 6, 8, 12, 40, 64, 80, 160]
    """
    count = len(images)
    missing = -count % next((step for most, step in _STEPS.items() if count <= most), _LONGEST_STEP)
    return torch.cat([images, images[-1:].expand(missing, *images.shape[1:])]) if missing else images


def check_logits(output: object, batch: int, classes: int, name: str) -> Tensor:
    """Return the output if it is floating point of shape (batch, classes), else say what it is."""
    if not isinstance(output, Tensor):
        raise WrongOutputError(f"version {name!r} returned a {type(output).__name__}, expected a tensor of logits")
    if output.shape != (batch, classes) or not output.is_floating_point():
        raise WrongOutputError(
            f"version {name!r} returned {output.dtype} of shape {tuple(output.shape)}, expected floating point "
            f"of shape ({batch}, {classes}); was it built for another number of classes?"
        )
    return output


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter or buffer is; the CPU for a model without any."""
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        return tensor.device
    return torch.device("cpu")


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], name: str) -> None:
    """Give a model the weights of a version.

    Raises:
        ConfigurationError: they are those of another architecture.
    """
    try:
        model.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise ConfigurationError(
            f"the weights of version {name!r} do not fit the given {type(model).__name__}: {error}; "
            "was its architecture changed, or another model given in its place?"
        ) from error


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Put a model in evaluation mode and leave every submodule in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    if training:  # setting each module's mode takes as long as a small model's answer
        model.eval()
    try:
        yield model
    finally:
        for module in training:
            module.training = True
