"""What a server asks of a guard's runtime."""

from typing import Any, Protocol

from torch import Tensor

from deepfailguard.guard.saved import GuardCard
from deepfailguard.guard.verdict import Verdict
from deepfailguard.runtime.status import Status

__all__ = ["Described", "Runtime"]


class Described(Protocol):
    """What can be told as JSON: a `SwapGate`, say."""

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, ready for JSON."""
        ...


class Runtime(Protocol):
    """A guard that keeps answering: `GuardRuntime`, or one whose versions run on other machines.

    It may be called from any thread; calls are served one after the other.
    """

    @property
    def card(self) -> GuardCard:
        """Classes, bounds, names and image size."""
        ...

    def __call__(self, images: Tensor, deadline: float | None = None) -> Verdict:
        """Answer images (B, C, H, W) float32 within so many seconds."""
        ...

    def status(self) -> Status:
        """How it and its versions stand."""
        ...

    def set_aside(self, name: str, reason: str) -> None:
        """Let a version's answers not count until it is released."""
        ...

    def release(self, name: str) -> None:
        """Let a version's answers count again."""
        ...

    def swap(self, leaving: str, entering: str, force: bool = False) -> Described:
        """Let a shadow take a version's place, if nothing speaks against it."""
        ...

    def close(self) -> None:
        """Stop the versions."""
        ...
