"""A guard in a process of its own: it answers like the guard, tells errors, comes back, and never stays behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from deepfailguard.errors import ConfigurationError, DataFormatError, GuardLostError
from deepfailguard.guard.guarded import GuardedPredictor
from deepfailguard.runtime.settings import Settings
from deepfailguard.serving import guard_process
from deepfailguard.serving.guard_process import GuardProcess
from deepfailguard.serving.guard_worker import GuardOrder
from tests.serving_examples import VERSIONS, images_of, save_own_guard

ROOT = Path(__file__).resolve().parents[3]
LONG = 120.0  # only ever waited for by a test that fails
SETTINGS = Settings(deadline=60.0)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("work")
    sys.path.insert(0, str(folder))  # the guard's process looks for the versions' code where this one does
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def guard(work: Path) -> GuardedPredictor:
    return save_own_guard(work)


@pytest.fixture(scope="module")
def order(work: Path, guard: GuardedPredictor) -> GuardOrder:
    return GuardOrder(work / "guard", trusted=("deepfailguard", "own_nets"), settings=SETTINGS, state=work / "state")


@pytest.fixture(scope="module")
def served(order: GuardOrder) -> Iterator[GuardProcess]:
    with GuardProcess(order) as process:
        yield process
    assert not psutil.pid_exists(process.pid or 0)


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)


def answers(process: GuardProcess) -> bool:
    try:
        return not process(images_of(1)).degraded
    except GuardLostError:
        return False


def test_it_answers_like_the_guard(served: GuardProcess, guard: GuardedPredictor) -> None:
    assert served.card.names == VERSIONS
    for count in (0, 1, 7, 300):
        verdict, expected = served(images_of(count)), guard(images_of(count))
        for name in ("labels", "abstained", "failure_probability", "probabilities", "weights", "version_labels"):
            assert torch.equal(getattr(verdict, name), getattr(expected, name)), name
        assert verdict.classes == expected.classes
        assert not verdict.degraded


def test_threads_get_their_own_answers(served: GuardProcess, guard: GuardedPredictor) -> None:
    batches = [images_of(count, seed=count) for count in range(1, 17)]
    with ThreadPoolExecutor(4) as threads:
        verdicts = list(threads.map(served, batches))
    for verdict, batch in zip(verdicts, batches, strict=True):
        assert torch.equal(verdict.labels, guard(batch).labels)


def test_what_the_guard_refuses_is_refused_and_it_answers_on(served: GuardProcess) -> None:
    with pytest.raises(DataFormatError):
        served(torch.zeros(1, 3, 5, 5))
    with pytest.raises(ConfigurationError, match="deadline must be a positive"):
        served(images_of(1), deadline=-1.0)
    with pytest.raises(ConfigurationError, match="nobody"):
        served.set_aside("nobody", "a test")
    assert answers(served)


def test_an_operator_reaches_the_guard(served: GuardProcess) -> None:
    assert [version.name for version in served.status().versions] == list(VERSIONS)
    served.set_aside("odd", "a test")
    assert served.status().versions[2].state == "quarantined"
    assert served(images_of(3)).degraded
    served.release("odd")
    until(lambda: answers(served))


def test_it_comes_back_with_its_state_when_its_process_dies(served: GuardProcess) -> None:
    served.set_aside("odd", "it looks strange")
    before = served.pid
    assert before is not None
    os.kill(before, signal.SIGSTOP)  # so that a question is under way
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(served, images_of(2))
        time.sleep(0.05)
        assert not asked.done()
        os.kill(before, signal.SIGKILL)
        with pytest.raises(GuardLostError, match="another one is being started"):
            asked.result(LONG)
    with pytest.raises(GuardLostError, match="ask again"):
        served.status()
    until(lambda: served.pid != before)
    assert served(images_of(3)).degraded
    assert "it looks strange" in served.status().versions[2].reason
    served.release("odd")
    until(lambda: answers(served))


def test_a_process_that_hangs_is_killed_and_comes_back(order: GuardOrder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard_process, "_GRACE", 0.5)
    with GuardProcess(replace(order, settings=Settings(deadline=0.25), state=None)) as process:
        before = process.pid
        assert before is not None
        os.kill(before, signal.SIGSTOP)  # as if a version held Python's lock
        with suppress(GuardLostError):  # on a busy machine it may be back already
            process(images_of(1))
        until(lambda: process.pid != before)
        until(lambda: answers(process))


def test_a_process_that_hangs_is_ended_too(order: GuardOrder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard_process, "_SECONDS_TO_END", 0.5)
    process = GuardProcess(replace(order, state=None))
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)
    process.close()
    process.close()
    until(lambda: not psutil.pid_exists(process.pid or 0))


def test_a_guard_that_cannot_be_loaded_says_why(order: GuardOrder, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no guard"):
        GuardProcess(GuardOrder(tmp_path))


def test_a_status_is_told_while_the_guard_computes_and_a_hang_is_noticed_without_questions(
    order: GuardOrder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard_process, "_GRACE", 3.0)
    monkeypatch.setattr(guard_process, "_IDLE", 0.05)
    with GuardProcess(replace(order, state=None)) as process:
        before = process.pid
        assert before is not None
        process.set_aside("odd", "a test")
        os.kill(before, signal.SIGSTOP)
        with suppress(GuardLostError):
            process.status()
        until(lambda: process.pid != before)
        assert process.status().versions[2].reason.endswith("a test")  # also without a folder for the state


def test_what_cannot_be_read_ends_the_process_and_nobody_waits_for_ever(served: GuardProcess) -> None:
    before, line = served.pid, served._alive.lines["operator"]
    with pytest.raises(GuardLostError):  # what comes back is no pair
        line._asked.appendleft(None)  # type: ignore[arg-type]
        served.set_aside("odd", "a test")
    until(lambda: served.pid != before)
    until(lambda: len(served.status().versions) == len(VERSIONS))
    served.set_aside("odd", "a test")
    served.release("odd")


PROGRAM = """
import sys, time
from pathlib import Path
from deepfailguard.serving import guard_process
from deepfailguard.serving.guard_process import GuardProcess
from deepfailguard.serving.guard_worker import GuardOrder

if __name__ == "__main__":
    guard = GuardProcess(GuardOrder(Path(sys.argv[1]), trusted=("deepfailguard", "own_nets")))
    print(guard.pid, flush=True)
    if len(sys.argv) > 2:
        sys.exit(3)  # and does not close it
    time.sleep(600)
"""


def test_it_ends_when_the_program_is_killed(order: GuardOrder, work: Path) -> None:
    program = work / "program.py"
    program.write_text(PROGRAM)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{work}"}
    command = [sys.executable, str(program), str(order.folder)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        os.kill(pid, signal.SIGTERM)  # is for the program, which would close it
        assert psutil.pid_exists(pid)
        os.kill(pid, signal.SIGSTOP)  # as if it hung
        process.kill()
    until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    forgetful = subprocess.run([*command, "forgets"], env=environment, capture_output=True, text=True, timeout=LONG)
    assert forgetful.returncode == 3
    assert not psutil.pid_exists(int(forgetful.stdout))
