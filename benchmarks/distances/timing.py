"""Several methods on the same images, chunk by chunk, one after the other in an order that rotates."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import torch
from torch import Tensor, nn

from deepfailguard.types import Distances

__all__ = ["Method", "Outcome", "Trace", "interleave", "rotated", "timed", "works"]

T = TypeVar("T")
Outcome = Tensor | Distances
"""Changed images (B, ...), or distances that were verified already."""

FORWARD_BATCH: Final = 128
_WARM_UP: Final = 4  # images, for methods that take long
_PASSES: Final = 2  # forward passes before and as many after each call


@dataclass(frozen=True, slots=True)
class Method:
    """A way to find, or to estimate, boundary distances.

    Attributes:
        name: in tables.
        run: from model and images (B, C, H, W) to the outcome.
        repeats: calls on each chunk, of which the median counts; more than one for brief methods.
        searches: whether it shows a point beyond the boundary; else it is an estimate.
    """

    name: str
    run: Callable[[nn.Module, Tensor], Outcome]
    repeats: int = 1
    searches: bool = True


@dataclass(frozen=True, slots=True)
class Trace:
    """What one method did on C chunks of altogether B images.

    Attributes:
        seconds: (C,) for a chunk.
        fpe: (C,) the same in forward passes of the chunk that were timed just before and after.
        distances: of all images.
    """

    seconds: Tensor
    fpe: Tensor
    distances: Distances


def interleave(
    methods: Sequence[Method], model: nn.Module, chunks: Sequence[Tensor], say: Callable[[str], None]
) -> dict[str, Trace]:
    """Run all methods on all chunks.

    Args:
        methods: with different names.
        model: in evaluation mode.
        chunks: images (B, C, H, W) on the model's device.
        say: gets a line before each call, for who waits.

    Returns:
        By name.
    """
    for method in methods:
        _warm_up(method, model, chunks[0])
    seconds: dict[str, list[float]] = {method.name: [] for method in methods}
    fpe: dict[str, list[float]] = {method.name: [] for method in methods}
    parts: dict[str, list[Distances]] = {method.name: [] for method in methods}
    for number, chunk in enumerate(chunks):
        for method in rotated(methods, number):
            say(f"chunk {number + 1} of {len(chunks)}: {method.name}")
            took, relative, outcome = _measure(method, model, chunk)
            seconds[method.name].append(took)
            fpe[method.name].append(relative)
            parts[method.name].append(_judged(model, chunk, outcome))
    return {
        name: Trace(torch.tensor(seconds[name]), torch.tensor(fpe[name]), Distances.concatenate(parts[name]))
        for name in seconds
    }


def works(method: Method, model: nn.Module, chunk: Tensor, say: Callable[[str], None]) -> bool:
    """Whether a method of others gets through a few images; if not, a line says what it raised."""
    try:
        _warm_up(method, model, chunk)
    except Exception as error:  # whatever another library raises: its row is missing then, and nothing else
        say(f"left out: {method.name}: {type(error).__name__}: {error}")
        return False
    return True


def rotated(items: Sequence[T], turn: int) -> list[T]:
    """The same items, starting elsewhere in each turn."""
    start = turn % len(items)
    return [*items[start:], *items[:start]]


def timed(work: Callable[[], Outcome], device: torch.device) -> tuple[float, Outcome]:
    """Seconds that a call takes until the device has finished, and what it returned."""
    _finish(device)
    start = time.perf_counter()
    outcome = work()
    _finish(device)
    return time.perf_counter() - start, outcome


def _finish(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _warm_up(method: Method, model: nn.Module, chunk: Tensor) -> None:
    _forward(model, chunk)
    method.run(model, chunk if method.repeats > 1 else chunk[:_WARM_UP])
    model.zero_grad(set_to_none=True)


def _measure(method: Method, model: nn.Module, chunk: Tensor) -> tuple[float, float, Outcome]:
    """Median seconds, median FPE, and the last outcome."""
    took, relative = [], []
    for _ in range(method.repeats):
        forward = list(_forward_times(model, chunk))
        seconds, outcome = timed(lambda: method.run(model, chunk), chunk.device)
        # Some libraries leave gradients on the parameters; adding to them would slow down who comes next.
        model.zero_grad(set_to_none=True)
        forward += _forward_times(model, chunk)
        took.append(seconds)
        relative.append(seconds / statistics.median(forward))
    return statistics.median(took), statistics.median(relative), outcome


def _forward_times(model: nn.Module, chunk: Tensor) -> Iterator[float]:
    for _ in range(_PASSES):
        yield timed(lambda: _forward(model, chunk), chunk.device)[0]


@torch.no_grad()
def _forward(model: nn.Module, chunk: Tensor) -> Tensor:
    return torch.cat([model(part) for part in chunk.contiguous().split(FORWARD_BATCH)])


def _judged(model: nn.Module, images: Tensor, outcome: Outcome) -> Distances:
    """Distances of changed images, as the model sees them: only what flips the answer inside the bounds is found."""
    if isinstance(outcome, Distances):
        return outcome
    moved = outcome.detach().to(images).clamp(0.0, 1.0)
    answers, after = _forward(model, images).argmax(1), _forward(model, moved)
    found = (after.argmax(1) != answers) & after.isfinite().all(1)
    size = (moved - images).flatten(1).norm(dim=1)
    return Distances(answers.cpu(), torch.where(found, size, 0.0).cpu(), found.cpu())
