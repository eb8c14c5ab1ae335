"""Runners and a clock that do what a test says: no threads, no time that passes by itself."""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path

from deepfailguard.boundary.base import DistanceEstimator
from deepfailguard.guard.asking import Answers, ask
from deepfailguard.runtime.base import Question, Source
from deepfailguard.versions.version import Version


class FakeClock:
    """Time goes on when a test says so, and when somebody waits in vain."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class NeverDone(Future[Answers]):
    """Nobody ever answers; waiting takes the time that it is given, at once."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self.clock = clock

    def result(self, timeout: float | None = None) -> Answers:
        assert timeout is not None
        self.clock.now += timeout
        raise TimeoutError


@dataclass(eq=False)
class FakeRunner:
    """Answers at once, in the caller's thread; `behave` may change what it says, raise, or hang."""

    name: str
    source: Source
    clock: FakeClock
    parallel: bool = True
    behave: Callable[[Answers, Question], Answers] | None = None
    hangs: bool = False
    starts: int = 0
    abandoned: int = 0
    closed: bool = False
    broken: Exception | None = None
    changed: tuple[str, ...] = ()
    bytes: int | None = None
    asked: list[Question] = field(default_factory=list)
    version: Version | None = None

    @property
    def busy(self) -> bool:
        return False

    def start(self) -> "Future[None]":
        self.starts += 1
        self.version = replace(self.source.load(), name=self.name)
        return _future(self.broken)

    def ask(self, question: Question) -> "Future[Answers]":
        self.asked.append(question)
        if self.hangs:
            return NeverDone(self.clock)
        if self.broken is not None:
            return _future(self.broken)
        assert self.version is not None
        answers = ask(self.version, None, question.images, question.needs)
        return _future(answers if self.behave is None else self.behave(answers, question))

    def check_weights(self, seconds: float) -> "Future[tuple[str, ...]]":
        return _future(self.changed)

    def memory(self) -> int | None:
        return self.bytes

    def abandon(self) -> None:
        self.abandoned += 1

    def close(self) -> None:
        self.closed = True


@dataclass
class FakeHouse:
    """Makes fake runners, and knows them by name."""

    clock: FakeClock = field(default_factory=FakeClock)
    parallel: bool = True
    runners: dict[str, FakeRunner] = field(default_factory=dict)

    def __call__(self, name: str, source: Source, distance: DistanceEstimator | None, cache: Path | None) -> FakeRunner:
        self.runners[name] = FakeRunner(name, source, self.clock, self.parallel)
        return self.runners[name]


def _future(result: object) -> Future:  # type: ignore[type-arg]
    future: Future[object] = Future()
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
    return future
