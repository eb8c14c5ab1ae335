"""Randomness that depends on a seed and a purpose, and on nothing else."""

import hashlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import torch

__all__ = ["derive_seed", "generator", "random_state_kept", "seed_default", "seed_everything"]

_STATE: Final = threading.Lock()
"""Held where the state of a global generator is read or set. Torch (2.13) locks the generator then and keeps Python's
lock, but for a garbage collection in between: two threads that do so at once wait for one another for ever."""


def derive_seed(seed: int, *purpose: object) -> int:
    """A seed of its own for each purpose, so that two uses of one seed never share random numbers.

    >>> derive_seed(0, "weights") != derive_seed(0, "data")
    True
    """
    text = "/".join([str(seed), *map(str, purpose)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def generator(seed: int, *purpose: object) -> torch.Generator:
    """A CPU generator for one purpose; results do not depend on the device that uses them."""
    return torch.Generator().manual_seed(derive_seed(seed, *purpose))


def seed_everything(seed: int, *purpose: object) -> None:
    """Seed torch's global generators (all devices): for code that takes no generator, like dropout."""
    with _STATE:
        torch.manual_seed(derive_seed(seed, *purpose))


def seed_default(seed: int) -> None:
    """Seed torch's global generator of the CPU alone."""
    with _STATE:
        torch.default_generator.manual_seed(seed)


@contextmanager
def random_state_kept(devices: Sequence[torch.device | int] | None = None) -> Iterator[None]:
    """Give torch's global generators the states back that they had before: like `torch.random.fork_rng`, for threads.

    Args:
        devices: GPUs whose generators are kept beside the CPU's; all if None.

    >>> state = torch.get_rng_state()
    >>> with random_state_kept():
    ...     drawn = torch.rand(3)
    >>> torch.equal(torch.get_rng_state(), state)
    True
    """
    if devices is None:
        devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with _STATE:
        state, states = torch.get_rng_state(), [torch.cuda.get_rng_state(device) for device in devices]
    try:
        yield
    finally:
        with _STATE:
            torch.set_rng_state(state)
            for device, each in zip(devices, states, strict=True):
                torch.cuda.set_rng_state(each, device)
