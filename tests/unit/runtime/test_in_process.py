import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from deepfailguard.boundary.base import DistanceEstimator
from deepfailguard.boundary.estimates.first_order import FirstOrderDistance
from deepfailguard.errors import VersionError, VersionLostError
from deepfailguard.guard.asking import Answers, ask
from deepfailguard.runtime.base import Question
from deepfailguard.runtime.runners.in_process import InProcessRunner
from deepfailguard.runtime.runners.lane import Lane
from deepfailguard.types import NO_ANSWER
from tests.examples import bars
from tests.runtime_examples import Kept, Switch, switched

SECONDS = 60.0
IMAGES = bars(12, seed=4).images
QUESTION = Question(IMAGES)


@pytest.fixture
def lane() -> Iterator[Lane]:
    lane = Lane()
    yield lane
    lane.close(SECONDS)


@pytest.fixture
def runner(tmp_path: Path, lane: Lane) -> Iterator[InProcessRunner]:
    runner = made(tmp_path, lane)
    runner.start().result(SECONDS)
    yield runner
    runner.close()


def made(folder: Path, lane: Lane, seed: int = 0, distance: DistanceEstimator | None = None) -> InProcessRunner:
    return InProcessRunner(f"number {seed}", Kept(str(folder / f"switch-{seed}"), seed), distance, None, lane)


def switch_of(folder: Path, seed: int = 0) -> Switch:
    return Switch(folder / f"switch-{seed}")


def answered(runner: InProcessRunner, question: Question = QUESTION) -> Answers:
    return runner.ask(question).result(SECONDS)


def test_it_answers_as_asking_does(tmp_path: Path, lane: Lane) -> None:
    distance = FirstOrderDistance()
    runner = made(tmp_path, lane, distance=distance)
    runner.start().result(SECONDS)
    version, _ = switched(tmp_path / "switch-0")
    needs = frozenset({"stability", "features"})
    expected = ask(version, distance, IMAGES, needs)  # type: ignore[arg-type]
    for _ in range(2):  # apart, then on the shared lane
        came = answered(runner, Question(IMAGES, needs))  # type: ignore[arg-type]
        assert torch.equal(came.logits, expected.logits)
        assert torch.equal(came.features, expected.features)
        assert torch.equal(came.distances.size, expected.distances.size)
        assert came.health.name == "number 0"
        assert came.health.healthy
    assert not answered(runner, Question(IMAGES, measured=False)).distances.found.any()
    assert not runner.parallel
    assert runner.memory() is None
    runner.close()


@pytest.mark.parametrize(
    ("mode", "fault", "problem"),
    [
        ("raise", "exception", "RuntimeError: it broke down"),
        ("leave", "exception", "SystemExit: 3"),
        ("nan", "not finite", "logits of 12 of 12 inputs are NaN"),
        ("wrong shape", "wrong output", "of shape"),
        ("wrong classes", "wrong output", r"of shape \(12, 2\)"),
        ("wrong dtype", "wrong output", "int64"),
        ("no tensor", "wrong output", "a str"),
    ],
)
def test_what_a_model_does_wrong_is_told_in_the_health(
    tmp_path: Path, runner: InProcessRunner, mode: str, fault: str, problem: str
) -> None:
    switch_of(tmp_path).set(mode)
    came = answered(runner)
    assert (came.distances.labels == NO_ANSWER).all()
    assert came.health.fault == fault
    assert came.health.answered == 0
    assert re.search(problem, came.health.problem)
    switch_of(tmp_path).set("sound")
    assert answered(runner).health.healthy


def test_what_does_not_run_cannot_be_asked(tmp_path: Path, lane: Lane) -> None:
    runner = made(tmp_path, lane)
    for future in (runner.ask(QUESTION), runner.check_weights(0.01)):
        with pytest.raises(VersionLostError, match="'number 0' does not run; start it"):
            future.result(SECONDS)


@pytest.mark.parametrize(
    ("mode", "told"), [("raise", "OSError: the disk is gone"), ("leave", "SystemExit: 3")], ids=["raise", "leave"]
)
def test_a_version_that_cannot_be_loaded_answers_no_more(
    tmp_path: Path, runner: InProcessRunner, mode: str, told: str
) -> None:
    loading = Kept(str(tmp_path / "switch-0")).loading
    loading.set(mode)
    with pytest.raises(VersionError, match=f"version 'number 0' cannot be loaded: {told}"):
        runner.start().result(SECONDS)
    with pytest.raises(VersionLostError, match="does not run"):
        answered(runner)
    loading.set("sound")
    runner.start().result(SECONDS)
    assert answered(runner).health.healthy


def test_weights_that_change_are_found_and_a_start_brings_sound_ones(tmp_path: Path, runner: InProcessRunner) -> None:
    before = answered(runner)
    assert runner.check_weights(SECONDS).result(SECONDS) == ()
    switch_of(tmp_path).set("corrupt")
    assert not torch.equal(answered(runner).logits, before.logits)
    assert runner.check_weights(SECONDS).result(SECONDS) == ("inner.weight",)
    runner.start().result(SECONDS)
    assert runner.check_weights(SECONDS).result(SECONDS) == ()
    assert torch.equal(answered(runner).logits, before.logits)


def test_what_is_asked_while_it_is_loaded_waits_for_that_and_others_do_not(tmp_path: Path, lane: Lane) -> None:
    slow, other = made(tmp_path, lane, 0), made(tmp_path, lane, 1)
    other.start().result(SECONDS)
    loading = Kept(str(tmp_path / "switch-0")).loading
    loading.set("hang")
    started, asked = slow.start(), slow.ask(QUESTION)
    loading.wait_met(1)
    for _ in range(3):
        assert answered(other).health.healthy
    assert slow.busy
    assert not other.busy
    assert not asked.done()
    loading.set("sound")
    assert asked.result(SECONDS).health.healthy
    assert started.done()
    assert not slow.busy


def test_a_version_is_on_the_shared_lane_only_when_it_has_answered_once(tmp_path: Path, lane: Lane) -> None:
    """So one that hangs when it is tried again holds up nobody."""
    runner = made(tmp_path, lane)
    runner.start().result(SECONDS)
    gate, entered = threading.Event(), threading.Event()
    lane.submit("other", lambda: (entered.set(), gate.wait(SECONDS)))
    assert entered.wait(SECONDS)
    assert answered(runner).health.healthy  # beside the lane, which is blocked
    second = runner.ask(QUESTION)
    assert lane.waiting(runner)
    gate.set()
    assert second.result(SECONDS).health.healthy
    runner.start().result(SECONDS)
    entered.clear()
    gate.clear()
    lane.submit("other", lambda: (entered.set(), gate.wait(SECONDS)))
    assert entered.wait(SECONDS)
    assert answered(runner).health.healthy
    gate.set()


def test_a_closed_runner_answers_no_more(tmp_path: Path, lane: Lane) -> None:
    runner = made(tmp_path, lane)
    runner.start().result(SECONDS)
    runner.close()
    runner.close()
    for future in (runner.ask(QUESTION), runner.start(), runner.check_weights(0.01)):
        with pytest.raises(VersionLostError, match="'number 0' was closed"):
            future.result(SECONDS)
    assert not runner.busy
    assert lane.submit("other", lambda: 1).result(SECONDS) == 1
