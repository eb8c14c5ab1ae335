"""Versions that hang in this process."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deepfailguard.errors import VersionLostError
from deepfailguard.guard.asking import Answers
from deepfailguard.runtime.base import Question
from deepfailguard.runtime.runners import in_process as in_process_runner
from deepfailguard.runtime.runners.in_process import InProcessRunner
from deepfailguard.runtime.runners.lane import Lane
from tests.examples import bars
from tests.runtime_examples import SECONDS, Kept, Switch, until

QUESTION = Question(bars(6, seed=4).images)


def answered(runner: InProcessRunner) -> Answers:
    return runner.ask(QUESTION).result(SECONDS)


def sound(runner: InProcessRunner) -> bool:
    return answered(runner).health.healthy


@pytest.fixture
def lane() -> Iterator[Lane]:
    lane = Lane()
    yield lane
    lane.close(SECONDS)


def in_process(folder: Path, lane: Lane, name: str) -> tuple[InProcessRunner, Switch]:
    """One that has answered once, so that it is on the shared lane."""
    runner = InProcessRunner(name, Kept(str(folder / name)), None, None, lane)
    runner.start().result(SECONDS)
    assert sound(runner)
    return runner, Switch(folder / name)


def hung(runner: InProcessRunner, switch: Switch) -> "Callable[[], Answers]":
    met = switch.met
    switch.set("hang")
    asked = runner.ask(QUESTION)
    switch.wait_met(met + 1)
    return lambda: asked.result(SECONDS)


def test_a_version_that_hangs_holds_up_nobody_and_is_free_when_it_ends(tmp_path: Path, lane: Lane) -> None:
    (stuck, switch), (other, _) = in_process(tmp_path, lane, "stuck"), in_process(tmp_path, lane, "other")
    result = hung(stuck, switch)
    waiting = other.ask(QUESTION)
    stuck.abandon()
    assert waiting.result(SECONDS).health.healthy
    with pytest.raises(VersionLostError, match="'stuck' was abandoned: nobody waits for it any more"):
        result()
    assert stuck.busy
    with pytest.raises(VersionLostError, match="'stuck' still hangs in what it was asked before; start it anew"):
        answered(stuck)
    assert sound(other)
    switch.set("sound")  # the late result comes now
    until(lambda: not stuck.busy, "free")
    with pytest.raises(VersionLostError, match="was abandoned"):
        result()
    assert sound(stuck)
    for runner in (stuck, other):
        runner.close()


def test_a_start_frees_a_version_that_hangs_for_ever(tmp_path: Path, lane: Lane) -> None:
    (stuck, switch), (other, _) = in_process(tmp_path, lane, "stuck"), in_process(tmp_path, lane, "other")
    hung(stuck, switch)
    threads = threading.active_count()
    stuck.abandon()
    stuck.start().result(SECONDS)
    assert not stuck.busy  # another module is used, though the old one still hangs
    again = hung(stuck, switch)  # and so does the new one when it is tried, apart from the others
    assert sound(other)
    stuck.abandon()
    with pytest.raises(VersionLostError, match="was abandoned"):
        again()
    stuck.start().result(SECONDS)
    switch.set("sound")
    assert sound(stuck)
    until(lambda: threading.active_count() <= threads, "ended: the threads that hung")
    for runner in (stuck, other):
        runner.close()


def test_a_start_that_hangs_is_thrown_away(tmp_path: Path, lane: Lane) -> None:
    source = Kept(str(tmp_path / "loads"))
    runner = InProcessRunner("loads", source, None, None, lane)
    source.loading.set("hang")
    started = runner.start()
    source.loading.wait_met(1)
    runner.abandon()
    with pytest.raises(VersionLostError, match="was abandoned"):
        started.result(SECONDS)
    assert runner.busy
    source.loading.set("sound")  # what hung loads a version now, too late
    until(lambda: not runner.busy, "free")
    with pytest.raises(VersionLostError, match="does not run; start it"):
        answered(runner)
    runner.start().result(SECONDS)
    assert sound(runner)
    runner.close()


def test_closing_leaves_one_alone_that_hangs(tmp_path: Path, lane: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_process_runner, "_SECONDS_TO_END", 0.3)
    (stuck, switch), (other, _) = in_process(tmp_path, lane, "stuck"), in_process(tmp_path, lane, "other")
    result = hung(stuck, switch)
    stuck.close()
    with pytest.raises(VersionLostError, match="was abandoned"):
        result()
    assert sound(other)
    switch.set("sound")
    other.close()
