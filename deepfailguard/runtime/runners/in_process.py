"""Versions in this process: fast, apart from one another as far as threads can be."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from deepfailguard.boundary.base import DistanceEstimator
from deepfailguard.errors import VersionLostError
from deepfailguard.guard.asking import Answers
from deepfailguard.runtime.base import Question, Source
from deepfailguard.runtime.runners.lane import Job, Lane
from deepfailguard.runtime.runners.loaded import LoadedVersion

__all__ = ["InProcessRunner"]

_SECONDS_TO_END: Final = 5.0
_MOST_HUNG: Final = 8
_HANGS_FOR_EVER: Final = (
    f"version {{!r}} hangs {_MOST_HUNG} times over in this process, where nothing can end it; run versions in "
    "processes, or start the program anew"
)

T = TypeVar("T")
_Mark = tuple[int, int]  # how often it was started and abandoned when something was asked


class InProcessRunner:
    """Runs a version on a lane that it shares with others.

    It has a lane of its own for all that may last: loading, and answers from when it was started or abandoned until
    it has answered once. So others wait for a version that hangs no longer than until it is abandoned, and
    not at all while it is loaded or tried again.

    What was abandoned goes on on its thread, and its result is thrown away. Until it ends, or the version is
    started anew (with another module), the version cannot be asked: futures fail with `VersionLostError`. Each
    restart of a version that hangs for ever costs a thread and a module: after eight it is not started any more.

    Args:
        name: the version's.
        source: of its sound weights.
        distance: tells boundary distances; None if nobody needs them.
        cache: folder of distances; None for none.
        lane: whoever made it closes it.
    """

    parallel: bool = False

    def __init__(
        self, name: str, source: Source, distance: DistanceEstimator | None, cache: Path | None, lane: Lane
    ) -> None:
        self.name = name
        self._load = partial(LoadedVersion.load, name, source, distance, cache)
        self._shared = lane
        self._own = Lane(f"deepfailguard {name}", lasting=False)
        self._lock = threading.Lock()
        self._loaded: LoadedVersion | None = None
        self._proven = False
        self._left: list[Job[Any]] = []
        self._hung: list[Job[Any]] = []
        self._started = self._abandoned = 0
        self._closed = False

    @property
    def busy(self) -> bool:
        """Whether something is under way, be it that nobody waits for it any more."""
        return self._shared.holds(self) or self._own.holds(self) or self._is_stuck()

    def start(self) -> "Future[None]":
        """Load the version in place of the one that runs, if one does; that goes on until then."""
        with self._lock:
            self._hung = [job for job in self._hung if job.under_way]
            if len(self._hung) >= _MOST_HUNG:
                refused: Future[None] = Future()
                refused.set_exception(VersionLostError(_HANGS_FOR_EVER.format(self.name)))
                return refused
        return self._submit(lambda _: self._start(), start=True)

    def ask(self, question: Question) -> "Future[Answers]":
        """The version's answers."""
        return self._submit(partial(self._ask, question))

    def check_weights(self, seconds: float) -> "Future[tuple[str, ...]]":
        """Compare weights for about this long; answers of all versions on the lane wait for at most one such check."""
        return self._submit(lambda _: self._ready().rotation.check(seconds), patient=True)

    def memory(self) -> int | None:
        """None: its memory is this process's."""
        return None

    def abandon(self) -> None:
        """Leave what runs alone, and let others go on; if nothing runs yet, what waits is given up."""
        given_up = VersionLostError(f"version {self.name!r} was abandoned: nobody waits for it any more")
        job = self._shared.leave(self) or self._own.leave(self)
        self._shared.drop(self, given_up)  # it is asked apart from now on, and never on two lanes at once
        if job is None:
            self._own.drop(self, given_up)
            return
        with self._lock:
            self._abandoned += 1
            self._proven = False
            self._left = [left for left in (*self._left, job) if left.under_way]
            self._hung = [hung for hung in (*self._hung, job) if hung.under_way]
        job.fail(given_up)

    def close(self) -> None:
        """End for good; waits for what runs for a few seconds, then leaves it alone."""
        with self._lock:
            self._closed = True
        lanes = (self._shared, self._own)
        for lane in lanes:
            lane.drop(self, self._closed_error())
        wait([job.future for lane in lanes if (job := lane.running(self)) is not None], _SECONDS_TO_END)
        for _ in lanes:
            self.abandon()
        with self._lock:
            self._loaded = None

    def _submit(self, work: Callable[[_Mark], T], start: bool = False, patient: bool = False) -> "Future[T]":
        with self._lock:
            if self._closed:
                refused: Future[T] = Future()
                refused.set_exception(self._closed_error())
                return refused
            if start:
                self._started += 1
                self._proven = False
            lane = self._shared if self._proven else self._own
            return lane.submit(self, partial(work, self._mark()), patient)

    def _mark(self) -> _Mark:
        return self._started, self._abandoned

    def _closed_error(self) -> VersionLostError:
        return VersionLostError(f"version {self.name!r} was closed, and answers no more")

    def _start(self) -> None:
        before = self._abandoned
        loaded: LoadedVersion | None = None
        try:
            loaded = self._load()
        finally:  # where it cannot be loaded nothing shall answer: there was a reason to load it
            with self._lock:
                if self._abandoned == before and not self._closed:
                    self._loaded, self._left = loaded, []

    def _ask(self, question: Question, mark: _Mark) -> Answers:
        answers = self._ready().ask(question)
        with self._lock:
            if mark == self._mark() and not self._own.waiting(self):  # never on two lanes at once
                self._proven = True
        return answers

    def _ready(self) -> LoadedVersion:
        """What can be asked now."""
        if self._is_stuck():
            raise VersionLostError(
                f"version {self.name!r} still hangs in what it was asked before; start it anew, or wait until that ends"
            )
        loaded = self._loaded
        if loaded is None:
            raise VersionLostError(f"version {self.name!r} does not run; start it")
        return loaded

    def _is_stuck(self) -> bool:
        with self._lock:
            return any(job.under_way for job in self._left)
