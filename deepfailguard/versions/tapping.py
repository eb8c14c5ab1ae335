"""What the layers of a model get, read in passing."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from deepfailguard.versions.logits import as_logits
from deepfailguard.versions.probing import writes_of, yields_logits
from deepfailguard.versions.version import evaluating

__all__ = ["Tap", "tapped"]

_KNOWN: Final[WeakKeyDictionary[nn.Module, WeakKeyDictionary[nn.Module, bool]]] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Tap:
    """One forward pass and what its layers got.

    Attributes:
        logits: (B, K) as the model returned them.
        features: (B, F) input of the linear layer that made the logits, or of the one that ran last where none made
            them alone; for a model without linear layers the last convolution's, as its mean over the image; F = 0
            for a model without either.
        weight: (K, F) of the linear layer that made the logits (or of the 1x1 convolution whose mean they are);
            None if no layer did.
        means: (B, M) mean inputs of the convolutions that were asked for.
    """

    logits: Tensor
    features: Tensor
    weight: Tensor | None
    means: Tensor


@dataclass(frozen=True, slots=True)
class _Pass:
    """One layer at work; `writes` tells how often its output had been written to when it was made."""

    layer: nn.Module
    given: Tensor
    output: Tensor
    writes: int | None


@dataclass(slots=True)
class _Seen:
    """What ran. No image is kept alive longer than it takes, but for those of a convolution at the very end."""

    flat: list[_Pass] = field(default_factory=list)
    image: _Pass | None = None
    means: list[Tensor] = field(default_factory=list)

    def note_linear(self, layer: nn.Module, given: tuple[object, ...], output: object) -> None:
        if given and isinstance(given[0], Tensor) and isinstance(output, Tensor) and output.ndim == 2:
            self.flat.append(_Pass(layer, given[0], output, writes_of(output)))

    def note_image(self, layer: nn.Module, given: tuple[object, ...], output: object) -> None:
        if given and isinstance(given[0], Tensor) and isinstance(output, Tensor) and output.ndim == 4:
            self.image = _Pass(layer, given[0], output, writes_of(output))

    def note_mean(self, layer: nn.Module, given: tuple[object, ...]) -> None:
        if given and isinstance(given[0], Tensor) and given[0].ndim == 4:
            self.means.append(given[0].mean((2, 3)))


@contextmanager
def _watching(model: nn.Module, convolutions: int) -> Iterator[_Seen]:
    seen, hooks = _Seen(), []
    layers = list(model.modules())
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    images = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    some = min(convolutions, len(images))
    try:
        hooks += [layer.register_forward_hook(seen.note_linear) for layer in linear]
        hooks += [layer.register_forward_hook(seen.note_image) for layer in images[-1:] if not linear]
        chosen = [images[(number + 1) * len(images) // some - 1] for number in range(some)]
        hooks += [layer.register_forward_pre_hook(seen.note_mean) for layer in chosen]
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def tapped(model: nn.Module, x: Tensor, convolutions: int = 0) -> Tap:
    """Run the model in evaluation mode and tell what its layers got; the model is left as it was.

    Args:
        model: from images (B, ...) to logits (B, K).
        x: (B, ...) on the model's device.
        convolutions: of how many the mean inputs are told; spread evenly over the model, the last one included.

    Example:
        >>> tapped(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), torch.rand(2, 1, 2, 2)).features.shape
        torch.Size([2, 4])
    """
    with evaluating(model):
        with _watching(model, convolutions) as seen:
            logits = as_logits(model(x), len(x))
        head = _head(model, x, logits, seen)
    means = torch.cat([mean.to(logits.dtype) for mean in seen.means], 1) if seen.means else logits[:, :0]
    return Tap(logits, *head, means)


def _head(model: nn.Module, x: Tensor, logits: Tensor, seen: _Seen) -> tuple[Tensor, Tensor | None]:
    """Features and weight of the layer that made the logits."""
    fitting = [last for last in reversed(seen.flat) if last.output.shape == logits.shape]
    same = [last for last in fitting if _same(last, logits)]
    for last in same or [last for last in fitting if _yields(model, last.layer, x)]:
        if isinstance(last.layer, nn.Linear):
            return last.given, last.layer.weight
    if seen.flat:
        return seen.flat[-1].given, None
    if seen.image is None:
        return logits[:, :0], None
    features, layer = seen.image.given.mean((2, 3)), seen.image.layer
    if isinstance(layer, nn.Conv2d) and _is_pointwise(layer, seen.image) and _yields(model, layer, x):
        return features, layer.weight.flatten(1)  # the mean of a 1x1 convolution is the convolution of the mean
    return features, None


def _yields(model: nn.Module, layer: nn.Module, x: Tensor) -> bool:
    """The same as `yields_logits`, found out once for each layer of a model: it costs two images' forward pass."""
    known = _KNOWN.setdefault(model, WeakKeyDictionary())
    if layer not in known:
        known[layer] = yields_logits(model, layer, x)
    return known[layer]


def _same(last: _Pass, logits: Tensor) -> bool:
    """Whether the logits are the layer's output itself, as the layer left it."""
    output = last.output
    place = output.data_ptr() == logits.data_ptr() and output.stride() == logits.stride()
    return place and output.dtype == logits.dtype and last.writes is not None and writes_of(output) == last.writes


def _is_pointwise(layer: nn.Conv2d, last: _Pass) -> bool:
    return layer.kernel_size == (1, 1) and layer.groups == 1 and last.given.shape[2:] == last.output.shape[2:]
