"""A version in a process of its own: whatever it does there, the guard goes on."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial
from multiprocessing import current_process
from pathlib import Path
from typing import Final, TypeVar

from deepfailguard import errors
from deepfailguard.boundary.base import DistanceEstimator
from deepfailguard.boundary.counts import check_count
from deepfailguard.errors import (
    ConfigurationError,
    DeepfailguardError,
    VersionError,
    VersionLostError,
    WrongOutputError,
)
from deepfailguard.guard.asking import Answers, no_answers
from deepfailguard.runtime.base import Question, Source
from deepfailguard.runtime.runners.lane import Lane
from deepfailguard.runtime.runners.spawned import UNGUARDED, Spawned
from deepfailguard.runtime.runners.wire import Message, answers_of, question_message
from deepfailguard.runtime.runners.worker import Briefing

__all__ = ["ProcessRunner"]

_SECONDS_TO_END: Final = 5.0
_ABANDONED: Final = "nobody waited for it any more"

T = TypeVar("T")


class ProcessRunner:
    """Runs a version in a process of its own, which survives none of its crashes, while the others do.

    Source and distance estimator are sent there at each start. The process ends with this one.

    Args:
        name: the version's.
        source: of its sound weights.
        distance: tells boundary distances; None if nobody needs them.
        cache: folder of distances; None for none.
        threads: of torch in the process (>= 1); None for torch's own choice.
        start_seconds: that starting may take, with the imports of a new Python and the loading of the version.

    Raises:
        ConfigurationError: a setting is out of range, or the program imports itself in the processes that it starts.
    """

    parallel: bool = True

    def __init__(
        self,
        name: str,
        source: Source,
        distance: DistanceEstimator | None = None,
        cache: Path | None = None,
        threads: int | None = None,
        start_seconds: float = 120.0,
    ) -> None:
        if threads is not None:
            check_count("threads", threads, least=1)
        if not start_seconds > 0:
            raise ConfigurationError(f"start_seconds must be positive, got {start_seconds}")
        if getattr(current_process(), "_inheriting", False):  # it would start processes that start processes
            raise ConfigurationError(f"a process of a version must not start others: {UNGUARDED}")
        self.name = name
        self.start_seconds = start_seconds
        self._briefing = Briefing(name, source, distance, cache, threads)
        self._lane = Lane(f"deepfailguard {name}")
        self._lock = threading.Lock()
        self._process = Spawned(self._briefing)
        self._classes = 0

    @property
    def busy(self) -> bool:
        """Whether something is under way."""
        return self._lane.holds(self)

    @property
    def pid(self) -> int | None:
        """Number of the version's process; None if there is none."""
        return self._process.pid

    def start(self) -> "Future[None]":
        """Load the version in a fresh process; the old one is ended before."""
        return self._submit(self._start)

    def ask(self, question: Question) -> "Future[Answers]":
        """The version's answers."""
        return self._submit(partial(self._ask, question))

    def check_weights(self, seconds: float) -> "Future[tuple[str, ...]]":
        """Compare weights for about this long, in the version's process."""
        return self._submit(partial(self._check, seconds))

    def memory(self) -> int | None:
        """Resident memory of the version's process; None if it does not run."""
        return self._process.memory()

    def abandon(self) -> None:
        """Kill the version's process if something is under way."""
        with self._lock:
            if self._lane.holds(self):
                self._process.kill(_ABANDONED)

    def close(self) -> None:
        """End for good; waits for what is under way for a few seconds, then kills the process."""
        self._lane.drop(self, VersionLostError(f"version {self.name!r} was closed, and answers no more"))
        ended = self._submit(lambda: self._process.end())
        self._lane.close()
        if wait([ended], _SECONDS_TO_END).not_done:
            self.abandon()
        self._lane.close(_SECONDS_TO_END)

    def _submit(self, work: Callable[[], T]) -> "Future[T]":
        return self._lane.submit(self, work)

    def _start(self) -> None:
        old, fresh = self._process, Spawned(self._briefing)
        with self._lock:  # from now on it is the fresh one that `abandon` kills
            self._process = fresh
        old.end()
        said = fresh.launch(self.start_seconds)
        classes = said.facts.get("classes")
        if said.kind != "ready" or not isinstance(classes, int):
            fresh.end()
            raise _told(said, self.name)
        self._classes = classes

    def _ask(self, question: Question) -> Answers:
        asked = len(question.images)
        try:
            said = self._process.ask(question_message(question))
            return answers_of(said, self.name, self._classes, asked)
        except WrongOutputError as error:
            return no_answers(self.name, self._classes, asked, f"WrongOutputError: {error}", "wrong output")

    def _check(self, seconds: float) -> tuple[str, ...]:
        said = self._process.ask(Message("check", {"seconds": seconds}))
        changed = said.facts.get("changed")
        if said.kind != "checked" or not isinstance(changed, list):
            raise WrongOutputError(f"expected the check of version {self.name!r}, its process sent {said.kind!r}")
        return tuple(map(str, changed))


def _told(said: Message, name: str) -> DeepfailguardError:
    """Why a process could not load its version, as the error that it was there."""
    kind = getattr(errors, str(said.facts.get("error")), None)
    text = str(said.facts.get("text"))
    if isinstance(kind, type) and issubclass(kind, DeepfailguardError):
        return kind(text)
    return VersionError(f"version {name!r} cannot be loaded: {said.facts.get('error')}: {text}")
