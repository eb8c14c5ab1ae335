"""What one forward pass of each family costs."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

import torch
from torch import Tensor, nn

from benchmarks.decisions.pools import FAMILIES
from benchmarks.distances.timing import rotated, timed

__all__ = ["family_seconds", "seconds_of"]

_IMAGES: Final = 250
_ROUNDS: Final = 7


def family_seconds(images: Tensor, classes: int, device: torch.device) -> dict[str, float]:
    """Seconds that one image takes each family of the pools, by its name; a fault does not change the architecture.

    Args:
        images: (B, C, H, W), the first ones are used.
        classes: K.
        device: where the versions run.
    """
    batch = images[:_IMAGES].to(device)
    models = {each.__name__: each(channels=batch.shape[1]).build(classes).to(device).eval() for each in FAMILIES}
    works = {name: partial(_forward, model, batch) for name, model in models.items()}
    return {name: took / len(batch) for name, took in seconds_of(works, device).items()}


def seconds_of(works: Mapping[str, Callable[[], Tensor]], device: torch.device) -> dict[str, float]:
    """The median seconds of each work, which take turns, so that none has the machine at its best alone."""
    took: dict[str, list[float]] = {name: [] for name in works}
    names: Sequence[str] = list(works)
    for turn in range(-1, _ROUNDS):  # the first turn only warms up
        for name in rotated(names, max(0, turn)):
            seconds, _ = timed(works[name], device)
            took[name] += [seconds] if turn >= 0 else []
    return {name: statistics.median(each) for name, each in took.items()}


@torch.no_grad()
def _forward(model: nn.Module, batch: Tensor) -> Tensor:
    logits: Tensor = model(batch)
    return logits
