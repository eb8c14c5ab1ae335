"""Versions that are killed, crash, hang and stop in processes of their own."""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from deepfailguard.errors import VersionLostError
from deepfailguard.guard.asking import Answers
from deepfailguard.runtime.base import Question
from deepfailguard.runtime.runners import worker_process
from deepfailguard.runtime.runners.worker_process import ProcessRunner
from tests.examples import SIZE, bars
from tests.runtime_examples import EXIT_CODE, SECONDS, Kept, Switch, until

ROOT = Path(__file__).parents[2]
QUESTION = Question(bars(6, seed=4).images)
LARGE = Question(torch.rand(200_000, 1, SIZE, SIZE))  # no pipe holds it
SCRIPT = """
import os, signal, sys, threading, time
import torch
from deepfailguard.runtime.base import Question
from deepfailguard.runtime.runners.worker_process import ProcessRunner
from tests.runtime_examples import Kept, Switch

if __name__ == "__main__":
    runners = [ProcessRunner(str(n), Kept(f"{sys.argv[1]}/{n}"), threads=1) for n in range(2)]
    question = Question(torch.zeros(1, 1, 8, 8))
"""
# The first one hangs in an answer, the second one is idle.
HANGING = """
    for future in [runner.start() for runner in runners]:
        future.result(100)
    Switch(f"{sys.argv[1]}/0").set("hang")
    answer = runners[0].ask(question)
    Switch(f"{sys.argv[1]}/0").wait_met(1)
    print(*(runner.pid for runner in runners), flush=True)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("switch")


@pytest.fixture(scope="module")
def pair(folder: Path) -> Iterator[tuple[ProcessRunner, ProcessRunner]]:
    victim, other = (ProcessRunner(name, Kept(str(folder / name)), threads=1) for name in ("victim", "other"))
    for future in [victim.start(), other.start()]:
        future.result(SECONDS)
    yield victim, other
    victim.close()
    other.close()


@pytest.fixture
def victim(pair: tuple[ProcessRunner, ProcessRunner], switch: Switch) -> ProcessRunner:
    if pair[0].pid is None:
        pair[0].start().result(SECONDS)
    return pair[0]


@pytest.fixture
def other(pair: tuple[ProcessRunner, ProcessRunner]) -> ProcessRunner:
    return pair[1]


@pytest.fixture
def switch(folder: Path) -> Iterator[Switch]:
    switch = Switch(folder / "victim")
    yield switch
    switch.set("sound")


def answered(runner: ProcessRunner, question: Question = QUESTION) -> Answers:
    return runner.ask(question).result(SECONDS)


def sound(runner: ProcessRunner) -> bool:
    return answered(runner).health.healthy


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


@pytest.mark.parametrize(
    ("mode", "ending"),
    [
        ("exit", f"ended with exit code {EXIT_CODE}$"),
        ("segfault", "was ended by SIGSEGV$"),
        ("close files", "was ended: it had closed its line, or was to end, and went on$"),
    ],
)
def test_a_crash_is_told_with_how_it_ended(
    victim: ProcessRunner, other: ProcessRunner, switch: Switch, mode: str, ending: str
) -> None:
    process = victim.pid
    switch.set(mode)
    asked = victim.ask(QUESTION)
    assert sound(other)
    with pytest.raises(VersionLostError, match=f"^version 'victim' was lost: its process {ending}"):
        asked.result(SECONDS)
    assert process is not None
    assert not alive(process)
    with pytest.raises(VersionLostError, match="'victim' does not run; start it"):
        answered(victim)
    switch.set("sound")
    victim.start().result(SECONDS)
    assert sound(victim)


def test_a_process_that_is_killed_in_an_answer_is_told(victim: ProcessRunner, switch: Switch) -> None:
    met = switch.met
    switch.set("hang")
    asked, waiting = victim.ask(QUESTION), victim.ask(QUESTION)
    switch.wait_met(met + 1)
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGKILL)
    with pytest.raises(VersionLostError, match=r"its process was ended by SIGKILL \(out of memory, perhaps\)$"):
        asked.result(SECONDS)
    with pytest.raises(VersionLostError, match="does not run"):
        waiting.result(SECONDS)


def test_a_process_that_is_killed_while_idle_is_told_when_it_is_asked(victim: ProcessRunner) -> None:
    process = victim.pid
    assert process is not None
    assert (victim.memory() or 0) > 1 << 20
    os.kill(process, signal.SIGKILL)
    until(lambda: not alive(process), "dead")
    assert victim.memory() is None
    with pytest.raises(VersionLostError, match="its process was ended by SIGKILL"):
        answered(victim)


def test_a_process_that_hangs_is_abandoned_and_starts_anew(
    victim: ProcessRunner, other: ProcessRunner, switch: Switch
) -> None:
    met, process = switch.met, victim.pid
    switch.set("hang")
    asked = victim.ask(QUESTION)
    switch.wait_met(met + 1)
    assert victim.busy
    assert sound(other)
    victim.abandon()
    with pytest.raises(VersionLostError, match="its process was ended: nobody waited for it any more"):
        asked.result(SECONDS)
    assert process is not None
    assert not alive(process)
    switch.set("sound")
    started, early = victim.start(), victim.ask(QUESTION)  # what is asked meanwhile waits its turn
    assert early.result(SECONDS).health.healthy
    assert started.done()
    assert not victim.busy
    process = victim.pid
    victim.abandon()  # nothing is under way: nothing is ended
    assert sound(victim)
    assert victim.pid == process


def test_a_stopped_process_blocks_nobody_who_sends_it_much(victim: ProcessRunner, other: ProcessRunner) -> None:
    process = victim.pid
    assert process is not None
    os.kill(process, signal.SIGSTOP)
    asked = victim.ask(LARGE)
    for _ in range(3):
        assert sound(other)
    assert victim.busy
    assert not asked.done()
    victim.abandon()
    with pytest.raises(VersionLostError, match="nobody waited for it"):
        asked.result(SECONDS)
    assert not alive(process)
    victim.start().result(SECONDS)
    assert answered(victim, LARGE).health.answered == len(LARGE.images)


def test_a_start_that_hangs_is_abandoned(folder: Path) -> None:
    source = Kept(str(folder / "loads"))
    source.loading.set("hang")
    runner = ProcessRunner("loads", source, threads=1)
    started = runner.start()
    source.loading.wait_met(1)
    runner.abandon()
    with pytest.raises(VersionLostError, match="nobody waited for it"):
        started.result(SECONDS)
    for _ in range(3):  # in its first moments, wherever it is then
        started = runner.start()
        until(lambda: runner.pid is not None or started.done(), "launched")  # noqa: B023
        runner.abandon()
        with pytest.raises(VersionLostError, match="nobody waited for it"):
            started.result(SECONDS)
    source.loading.set("sound")
    runner.start().result(SECONDS)
    assert sound(runner)
    runner.close()


def test_what_a_version_started_ends_with_it(victim: ProcessRunner, switch: Switch) -> None:
    switch.set("breed")
    assert sound(victim)
    switch.set("sound")
    child = switch.child
    assert alive(child)
    victim.start().result(SECONDS)
    until(lambda: not alive(child), "dead")
    assert sound(victim)


def test_closing_ends_one_that_hangs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_process, "_SECONDS_TO_END", 0.3)
    switch = Switch(folder / "closes")
    runner = ProcessRunner("closes", Kept(str(folder / "closes")), threads=1)
    runner.start().result(SECONDS)
    switch.set("hang")
    asked, process = runner.ask(QUESTION), runner.pid
    switch.wait_met(1)
    waiting = runner.ask(QUESTION)
    runner.close()
    assert process is not None
    assert not alive(process)
    for future in (asked, waiting):
        with pytest.raises(VersionLostError):
            future.result(SECONDS)


@contextmanager
def script(folder: Path, rest: str) -> "Iterator[subprocess.Popen[str]]":
    (folder / "run.py").write_text(SCRIPT + rest)
    process = subprocess.Popen(
        [sys.executable, str(folder / "run.py"), str(folder)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def workers(process: "subprocess.Popen[str]") -> list[int]:
    assert process.stdout is not None
    pids = [int(word) for word in process.stdout.readline().split()]
    assert len(pids) == 2
    return pids


def until_dead(pids: list[int]) -> None:
    try:
        until(lambda: not any(alive(pid) for pid in pids), "dead")
    finally:  # nothing shall be left behind by a test that fails
        for pid in filter(alive, pids):
            os.kill(pid, signal.SIGKILL)


def test_workers_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    with script(tmp_path, HANGING + "    time.sleep(600)\n") as process:
        pids = workers(process)
        os.kill(pids[1], signal.SIGSTOP)
        assert all(alive(pid) for pid in pids)
    until_dead(pids)


def test_a_program_that_ends_without_closing_ends_its_workers_and_does_not_wait(tmp_path: Path) -> None:
    with script(tmp_path, HANGING + "    os.kill(runners[1].pid, signal.SIGSTOP)\n") as process:
        pids = workers(process)
        assert process.wait(SECONDS) == 0
    until_dead(pids)


def test_workers_are_deaf_to_signals_meant_for_the_program(tmp_path: Path) -> None:
    rest = """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    started = [runner.start() for runner in runners]
    while not all(future.done() for future in started):
        os.killpg(0, signal.SIGINT)
        time.sleep(0.02)
    os.killpg(0, signal.SIGTERM)
    for runner in runners:
        os.kill(runner.pid, signal.SIGINT)
        os.kill(runner.pid, signal.SIGTERM)
    print(*(runner.ask(question).result(100).health.answered for runner in runners), flush=True)
    for runner in runners:  # what helped to start them ended by the signal
        runner.start().result(100)
    print(*(runner.ask(question).result(100).health.answered for runner in runners), flush=True)
"""
    with script(tmp_path, rest) as process:
        output, _ = process.communicate(timeout=SECONDS)
    assert output.split() == ["1", "1", "1", "1"]


def test_restarts_leak_nothing(tmp_path: Path) -> None:
    runners = [ProcessRunner(str(n), Kept(str(tmp_path / str(n))), threads=1) for n in range(2)]
    for future in [runner.start() for runner in runners]:
        future.result(SECONDS)
    switches = [Switch(tmp_path / runner.name) for runner in runners]
    gc.collect()  # switches of other tests
    before = held()
    for restart in range(10):
        for runner, switch in zip(runners, switches, strict=True):
            end(runner, switch, restart % 4)
        for future in [runner.start() for runner in runners]:
            future.result(SECONDS)
    assert all(sound(runner) for runner in runners)
    until(lambda: at_most(before), f"as before: {before}")
    for runner in runners:
        runner.close()
    after = {"files": before["files"] - 2 * 3, "threads": before["threads"] - 2, "processes": before["processes"] - 2}
    until(lambda: at_most(after), f"as few as {after}")


def held() -> dict[str, int]:
    return {
        "files": len(list(Path("/proc/self/fd").iterdir())),
        "threads": threading.active_count(),
        "processes": len(multiprocessing.active_children()),
    }


def at_most(expected: dict[str, int]) -> bool:
    now = held()
    return all(now[kind] <= expected[kind] for kind in expected)


def end(runner: ProcessRunner, switch: Switch, way: int) -> None:
    if way == 0:
        return  # it is started anew while it runs
    if way == 1:
        assert runner.pid is not None
        os.kill(runner.pid, signal.SIGKILL)
        return
    met = switch.met
    switch.set("hang" if way == 2 else "exit")
    asked = runner.ask(QUESTION)
    switch.wait_met(met + 1)
    if way == 2:
        runner.abandon()
    with pytest.raises(VersionLostError):
        asked.result(SECONDS)
    switch.set("sound")
