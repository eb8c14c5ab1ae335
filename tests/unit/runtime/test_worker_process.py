import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from deepfailguard.boundary.cache import CachedDistance
from deepfailguard.boundary.estimates.first_order import FirstOrderDistance
from deepfailguard.errors import ConfigurationError, CorruptFileError, VersionError, VersionLostError
from deepfailguard.guard.asking import Answers, ask
from deepfailguard.runtime.base import Question
from deepfailguard.runtime.runners.worker_process import ProcessRunner
from deepfailguard.runtime.sources import MemorySource
from deepfailguard.types import NO_ANSWER
from deepfailguard.versions.version import Version
from tests.examples import bars
from tests.runtime_examples import ALLOCATED, Kept, Switch, switched

SECONDS = 120.0
ROOT = Path(__file__).parents[3]
IMAGES = bars(12, seed=4).images
QUESTION = Question(IMAGES)
DISTANCE = FirstOrderDistance()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("switch")


@pytest.fixture(scope="module")
def started(folder: Path) -> Iterator[ProcessRunner]:
    source = MemorySource(switched(folder / "switch")[0])
    runner = ProcessRunner("one", source, DISTANCE, folder / "cache", threads=1)
    runner.start().result(SECONDS)
    yield runner
    runner.close()


@pytest.fixture
def runner(started: ProcessRunner, switch: Switch) -> ProcessRunner:
    return started


@pytest.fixture
def switch(folder: Path) -> Iterator[Switch]:
    switch = Switch(folder / "switch")
    yield switch
    switch.set("sound")


def answered(runner: ProcessRunner, question: Question = QUESTION) -> Answers:
    return runner.ask(question).result(SECONDS)


def test_it_answers_to_the_bit_as_in_this_process(runner: ProcessRunner, folder: Path) -> None:
    version, _ = switched(folder / "switch")
    needs = frozenset({"stability", "features", "logits"})
    for images in (IMAGES, IMAGES[:0]):
        expected = ask(version, DISTANCE, images, needs)  # type: ignore[arg-type]
        came = answered(runner, Question(images, needs))  # type: ignore[arg-type]
        assert torch.equal(came.logits, expected.logits)
        assert torch.equal(came.features, expected.features)
        assert torch.equal(came.distances.labels, expected.distances.labels)
        assert torch.equal(came.distances.size, expected.distances.size)
        assert torch.equal(came.distances.found, expected.distances.found)
        assert expected.stability is not None
        assert came.stability is not None
        assert torch.equal(came.stability, expected.stability)
        assert came.health.name == "one"
        assert came.health.healthy
    assert not answered(runner, Question(IMAGES, measured=False)).distances.found.any()
    assert runner.parallel
    assert runner.pid not in (None, os.getpid())


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
    runner: ProcessRunner, switch: Switch, mode: str, fault: str, problem: str
) -> None:
    process = runner.pid
    switch.set(mode)
    came = answered(runner)
    assert (came.distances.labels == NO_ANSWER).all()
    assert came.health.fault == fault
    assert came.health.answered == 0
    assert re.search(problem, came.health.problem)
    switch.set("sound")
    assert answered(runner).health.healthy
    assert runner.pid == process


def test_distances_are_in_the_cache_when_it_was_closed(folder: Path) -> None:
    version, _ = switched(folder / "switch")
    images = bars(5, seed=9).images
    runner = ProcessRunner("one", MemorySource(version), DISTANCE, folder / "own cache")
    runner.start().result(SECONDS)
    assert answered(runner, Question(images)).health.healthy
    runner.close()
    assert CachedDistance(DISTANCE, folder / "own cache", version.fingerprint).missing(images) == 0


def test_its_memory_is_told_as_it_grows(runner: ProcessRunner, switch: Switch) -> None:
    answered(runner)
    before = runner.memory()
    switch.set("allocate")
    answered(runner, Question(IMAGES, measured=False))
    after = runner.memory()
    assert before is not None
    assert after is not None
    assert ALLOCATED * 0.9 < after - before < 2 * ALLOCATED


def test_a_thread_that_asks_waits_for_its_own_answer_only(runner: ProcessRunner) -> None:
    expected = {n: answered(runner, Question(IMAGES[:n])) for n in range(1, 9)}
    wrong: list[int] = []

    def ask_often(n: int) -> None:
        for _ in range(5):
            came = answered(runner, Question(IMAGES[:n]))
            if not torch.equal(came.logits, expected[n].logits):
                wrong.append(n)

    threads = [threading.Thread(target=ask_often, args=(n,)) for n in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert not wrong
    assert not runner.busy


def test_weights_that_change_are_found_and_a_start_brings_sound_ones(folder: Path, switch: Switch) -> None:
    runner = ProcessRunner("two", Kept(str(folder / "switch")))
    runner.start().result(SECONDS)
    before = answered(runner)
    assert runner.check_weights(1.0).result(SECONDS) == ()
    switch.set("corrupt")
    assert not torch.equal(answered(runner).logits, before.logits)
    assert runner.check_weights(1.0).result(SECONDS) == ("inner.weight",)
    runner.start().result(SECONDS)
    assert runner.check_weights(1.0).result(SECONDS) == ()
    assert torch.equal(answered(runner).logits, before.logits)
    runner.close()
    assert runner.memory() is None
    assert runner.pid is None
    with pytest.raises(VersionLostError, match="was closed"):
        answered(runner)


def test_what_does_not_run_cannot_be_asked(folder: Path) -> None:
    runner = ProcessRunner("idle", Kept(str(folder / "switch")))
    for future in (runner.ask(QUESTION), runner.check_weights(0.01)):
        with pytest.raises(VersionLostError, match="'idle' does not run; start it"):
            future.result(SECONDS)
    assert runner.memory() is None
    runner.abandon()
    runner.close()
    runner.close()


class Corrupt:
    """A source whose file is damaged."""

    def load(self) -> Version:
        raise CorruptFileError("versions/0-one.safetensors holds other weights; save the guard again")


class Unreadable:
    """A source that can be sent, but not received."""

    def load(self) -> Version:
        raise AssertionError

    def __reduce__(self) -> tuple[object, ...]:
        return int, ("no number",)


@pytest.mark.parametrize(
    ("mode", "kind", "text"),
    [
        ("raise", VersionError, r"^version 'one' cannot be loaded: OSError: the disk is gone$"),
        ("leave", VersionError, r"^version 'one' cannot be loaded: SystemExit: 3$"),
        ("exit", VersionLostError, r"'one' was lost: its process ended with exit code 3$"),
        ("hang", VersionLostError, r"'one' was lost: its process was ended: it had not loaded its version within 1 s$"),
    ],
)
def test_a_version_that_cannot_be_loaded_says_why(tmp_path: Path, mode: str, kind: type[Exception], text: str) -> None:
    source = Kept(str(tmp_path / "switch"))
    source.loading.set(mode)
    runner = ProcessRunner("one", source, start_seconds=1 if mode == "hang" else SECONDS)
    with pytest.raises(kind, match=text):
        runner.start().result(SECONDS)
    assert runner.pid is None
    with pytest.raises(VersionLostError, match="does not run"):
        answered(runner)
    runner.close()


@pytest.mark.parametrize(
    ("source", "kind", "text"),
    [
        (Corrupt(), CorruptFileError, "^versions/0-one.safetensors holds other weights; save the guard again$"),
        (Unreadable(), ConfigurationError, "cannot be read there: ValueError.*'no number'; define classes of models"),
    ],
    ids=["corrupt", "unreadable"],
)
def test_errors_come_through_with_their_kind_and_text(
    source: Corrupt | Unreadable, kind: type[Exception], text: str
) -> None:
    runner = ProcessRunner("one", source)
    with pytest.raises(kind, match=text):
        runner.start().result(SECONDS)
    runner.close()


def test_what_cannot_be_sent_is_named(folder: Path) -> None:
    class Local(Kept):
        pass

    class LocalDistance(FirstOrderDistance):
        pass

    path = str(folder / "switch")
    for runner, what in (
        (ProcessRunner("one", Local(path)), "source"),
        (ProcessRunner("one", Kept(path), LocalDistance()), "distance estimator"),
    ):
        with pytest.raises(ConfigurationError, match=f"^the {what} of version 'one' cannot be sent.*top of a module"):
            runner.start().result(SECONDS)
        runner.close()


def test_settings_out_of_range_are_refused(folder: Path) -> None:
    source = Kept(str(folder / "switch"))
    with pytest.raises(ConfigurationError, match="threads must be"):
        ProcessRunner("one", source, threads=0)
    with pytest.raises(ConfigurationError, match="start_seconds must be positive, got 0"):
        ProcessRunner("one", source, start_seconds=0)


def test_a_program_without_main_guard_is_told_so(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(
        "import sys\n"
        "from deepfailguard.runtime.runners.worker_process import ProcessRunner\n"
        "from tests.runtime_examples import Kept\n"
        "ProcessRunner('one', Kept(sys.argv[1] + '/switch')).start().result(100)\n"
    )
    ran = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert ran.returncode == 1
    assert (
        "VersionLostError: version 'one' was lost: its process ended with exit code 1 before it answered" in ran.stderr
    )
    assert 'lacks `if __name__ == "__main__":`' in ran.stderr
    assert "a process of a version must not start others" in ran.stderr
