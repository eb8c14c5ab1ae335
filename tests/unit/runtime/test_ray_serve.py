"""How a runner treats what Ray tells it; Ray itself is not started."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import torch
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from deepfailguard.errors import CorruptFileError, VersionError, VersionLostError
from deepfailguard.guard.asking import ask
from deepfailguard.runtime.base import Question
from deepfailguard.runtime.runners.ray_replica import plain
from deepfailguard.runtime.runners.ray_serve import RayLink, RayServeRunner
from deepfailguard.types import Bounds
from deepfailguard.versions.version import Version
from tests.examples import CLASSES, bars, template_model

LONG = 60.0
QUESTION = Question(bars(3, seed=3).images, measured=False)
VERSION = Version.of(template_model(), "one", CLASSES, Bounds())
ANSWER = plain(ask(VERSION, None, QUESTION.images))
LOST = [
    ActorDiedError(),
    ActorUnavailableError("gone", b"0" * 16),
    BackPressureError(1, 1),
    DeploymentUnavailableError(DeploymentID("one")),
]

MADE: list[RayServeRunner] = []

Outcome = Callable[[], Awaitable[Any]]


class Handle:
    """A deployment whose calls end as the test says, one after the other; then they never end."""

    def __init__(self, *outcomes: Outcome) -> None:
        self.outcomes = list(outcomes)
        self.calls: list[str] = []
        self.cancelled = 0
        self.called = ""

    def __getattr__(self, method: str) -> "Handle":
        self.called = method
        return self

    def remote(self, *_: Any) -> Awaitable[Any]:
        self.calls.append(self.called)
        return self._end(self.outcomes.pop(0) if self.outcomes else never)

    async def _end(self, outcome: Outcome) -> Any:
        try:
            return await outcome()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


async def never() -> Any:
    await asyncio.Event().wait()


async def answer() -> Any:
    return ANSWER


def raising(error: Exception) -> Outcome:
    async def outcome() -> Any:
        raise error

    return outcome


@pytest.fixture
def link() -> Iterator[RayLink]:
    link = RayLink()
    link.enter()
    yield link
    for runner in MADE:
        runner.close()
    MADE.clear()
    link.leave()
    assert link.closed


def runner_of(handle: Handle, link: RayLink, retry_seconds: float = LONG) -> RayServeRunner:
    runner = RayServeRunner("one", handle, CLASSES, link, retry_seconds=retry_seconds)
    MADE.append(runner)
    return runner


def test_the_link_ends_with_its_last_runner() -> None:
    link = RayLink()
    runners = [runner_of(Handle(), link) for _ in range(2)]
    pending = runners[1].ask(QUESTION)
    runners[0].close()
    runners[0].close()
    assert not link.closed
    assert not pending.done()
    runners[1].close()
    assert link.closed
    assert pending.cancelled()


def expected() -> torch.Tensor:
    return ask(VERSION, None, QUESTION.images).logits


@pytest.mark.parametrize("error", LOST, ids=lambda error: type(error).__name__)
def test_a_lost_call_is_made_again(link: RayLink, error: Exception) -> None:
    handle = Handle(raising(error), raising(error), answer)
    assert torch.equal(runner_of(handle, link).ask(QUESTION).result(LONG).logits, expected())
    assert handle.calls == ["ask"] * 3


def test_after_that_the_version_is_lost(link: RayLink) -> None:
    handle = Handle(*[raising(ActorDiedError())] * 3)
    with pytest.raises(VersionLostError, match=r"version 'one' was lost on Ray.*ActorDiedError"):
        runner_of(handle, link).ask(QUESTION).result(LONG)
    assert handle.calls == ["ask"] * 3


def test_it_is_not_waited_for_replicas_for_long(link: RayLink) -> None:
    handle = Handle(raising(ActorDiedError()))  # then there is no other
    with pytest.raises(VersionLostError, match="no other replica took over"):
        runner_of(handle, link, retry_seconds=0.01).ask(QUESTION).result(LONG)


def test_what_takes_long_is_asked_of_a_second_replica(link: RayLink) -> None:
    handle = Handle(never, answer)
    assert torch.equal(runner_of(handle, link).ask(QUESTION).result(LONG).logits, expected())
    assert handle.calls == ["ask"] * 2
    assert handle.cancelled == 1


def test_the_second_replica_decides_nothing_but_by_an_answer(link: RayLink) -> None:
    gate = asyncio.Event()

    async def late() -> Any:
        await gate.wait()
        return ANSWER

    async def failing() -> Any:
        gate.set()
        raise ValueError("broken")

    handle = Handle(late, failing)
    assert torch.equal(runner_of(handle, link).ask(QUESTION).result(LONG).logits, expected())


def test_errors_of_a_replica_are_told_and_not_tried_again(link: RayLink) -> None:
    task_error = RayTaskError("ask", "a traceback", TypeError("cannot be"))
    own = RayTaskError("ask", "a traceback", CorruptFileError("not what it was"))
    for error, kind, match in (
        (task_error, VersionError, "version 'one' failed on Ray: TypeError: cannot be"),
        (own, CorruptFileError, "not what it was"),
    ):
        handle = Handle(raising(error.as_instanceof_cause()))
        with pytest.raises(kind, match=match):
            runner_of(handle, link).ask(QUESTION).result(LONG)
        assert handle.calls == ["ask"]


def test_abandoning_cancels_what_is_under_way(link: RayLink) -> None:
    runner = runner_of(Handle(), link)
    questions = [runner.ask(QUESTION) for _ in range(3)]
    assert runner.busy
    runner.abandon()
    assert all(question.cancelled() for question in questions)
    assert not runner.busy


def test_weights_that_nobody_can_compare_did_not_change(link: RayLink) -> None:
    assert runner_of(Handle(), link).check_weights(0.001).result(LONG) == ()
    assert runner_of(Handle(*[raising(ActorDiedError())] * 3), link).check_weights(0.001).result(LONG) == ()


def test_a_start_waits_for_a_replica_and_only_the_second_one_renews(link: RayLink) -> None:
    async def nothing() -> None:
        return None

    handle = Handle(*[raising(ActorDiedError())] * 4, nothing, nothing)
    renewed: list[str] = []

    class Told:
        async def results_async(self, **_: Any) -> list[Any]:
            return []

    def broadcast(method: str) -> Told:
        renewed.append(method)
        return Told()

    handle.broadcast = broadcast  # type: ignore[method-assign, assignment]
    runner = runner_of(handle, link)
    runner.start().result(LONG)
    assert (handle.calls, renewed) == (["ready"] * 5, [])
    runner.start().result(LONG)
    assert (handle.calls, renewed) == (["ready"] * 6, ["renew"])


def test_a_renewal_that_cannot_be_told_is_no_error(link: RayLink, caplog: pytest.LogCaptureFixture) -> None:
    async def nothing() -> None:
        return None

    def broadcast(_: str) -> None:
        raise DeploymentUnavailableError(DeploymentID("one"))

    handle = Handle(nothing, nothing)
    handle.broadcast = broadcast  # type: ignore[method-assign, assignment]
    runner = runner_of(handle, link)
    runner.start().result(LONG)
    runner.start().result(LONG)
    assert "could be told to load again" in caplog.text
