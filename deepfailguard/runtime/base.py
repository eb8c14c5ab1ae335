"""What a guard's runtime asks of whatever runs one version, and of whatever keeps that version's sound weights."""

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from deepfailguard.guard.asking import Answers
from deepfailguard.types import Need
from deepfailguard.versions.version import Version

__all__ = ["Question", "Runner", "Source"]


@dataclass(frozen=True, slots=True)
class Question:
    """What a version is asked.

    Attributes:
        images: (B, C, H, W) float32, finite and in the bounds; B may be 0.
        needs: what somebody needs of the answers beside labels and logits.
        measured: whether boundary distances are wanted, if the version's runner has an estimator.
    """

    images: Tensor
    needs: frozenset[Need] = frozenset()
    measured: bool = True


class Source(Protocol):
    """Keeps the sound weights of one version."""

    def load(self) -> Version:
        """A fresh, verified version that shares nothing with those loaded before.

        Raises:
            DeepfailguardError: what is kept is lost or no longer what it was.
        """
        ...


class Runner(Protocol):
    """Runs one version, in some way apart from the others.

    Calls return at once with a future (but for `close`), and may come from any thread. What the model does wrong is
    told in the answers' health. A future fails with `VersionLostError` where what runs the version died, and with
    another `DeepfailguardError` where it cannot be started. What is asked of it while it is busy waits its turn.

    Attributes:
        name: the version's.
        parallel: whether it computes beside other runners; those that do not are asked one after the other.
    """

    name: str
    parallel: bool

    @property
    def busy(self) -> bool:
        """Whether something is under way, be it that nobody waits for it any more."""
        ...

    def start(self) -> "Future[None]":
        """Load the version from its source, in place of one that runs already: the way to start, restart and repair."""
        ...

    def ask(self, question: Question) -> "Future[Answers]":
        """The version's answers."""
        ...

    def check_weights(self, seconds: float) -> "Future[tuple[str, ...]]":
        """Go on comparing weights with what they were when they were loaded, for about this long.

        Returns names of tensors that changed, of all that were compared since the last start.
        """
        ...

    def memory(self) -> int | None:
        """Bytes that it occupies; None if it has no memory of its own, or does not run."""
        ...

    def abandon(self) -> None:
        """Nobody waits any more for what is under way: end it if it can be ended, with its process if need be."""
        ...

    def close(self) -> None:
        """End for good; waits for what is under way no longer than a few seconds."""
        ...
