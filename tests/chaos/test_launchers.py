"""Launchers under killed workers, errors in one version, lost nodes and interrupts."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from deepfailguard.boundary.base import DistanceEstimator
from deepfailguard.boundary.cache import CachedDistance
from deepfailguard.errors import ConfigurationError, VersionError
from deepfailguard.pipeline.evidence import cache_distances
from deepfailguard.pipeline.launching.base import Launcher
from deepfailguard.pipeline.launching.inline import Inline
from deepfailguard.pipeline.launching.processes import Processes
from deepfailguard.pipeline.launching.ray_data import RayData
from deepfailguard.types import Distances
from deepfailguard.versions.pool import Pool
from tests.launching_examples import CHUNK, CPU, HangsOnNode, Troubled, filled_pool, images, same_bits

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning")  # Ray's own

ROOT = Path(__file__).parents[2]
VICTIM = "middle"
# Runs in another process group, as from a terminal: all of it gets the interrupt.
SCRIPT = """
import sys
from pathlib import Path
import torch
from tests.launching_examples import *
from deepfailguard.pipeline.evidence import cache_distances
from deepfailguard.pipeline.launching.processes import Processes
from deepfailguard.pipeline.launching.inline import Inline

if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    pool = Pool(folder / "pool", TRUSTED)
    launcher = Processes(workers=2) if sys.argv[2] == "processes" else Inline()
    estimator = Troubled(folder / "marks", "hang", times=1)
    try:
        cache_distances(pool.cards(), images(), estimator, folder / "cache", pool, CPU, launcher)
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    (tmp_path / "marks").mkdir()
    return filled_pool(tmp_path / "pool")


def troubled(tmp_path: Path, trouble: str, times: int) -> Troubled:
    return Troubled(tmp_path / "marks", trouble, times)


def run(
    pool: Pool, estimator: DistanceEstimator, launcher: Launcher | None = None, **choice: Any
) -> dict[str, Distances]:
    cards, parts = choice.get("cards", pool.cards()), choice.get("parts", images())
    return cache_distances(cards, parts, estimator, pool.folder.parent / "cache", pool, CPU, launcher)


def expected(pool: Pool, estimator: Troubled, **choice: Any) -> dict[str, Distances]:
    """What one process computes that meets no trouble."""
    cards, parts = choice.get("cards", pool.cards()), choice.get("parts", images())
    untroubled = Troubled(estimator.folder, "raise", times=0)
    return cache_distances(cards, parts, untroubled, pool.folder.parent / "expected", pool, CPU)


def missing(pool: Pool, estimator: Troubled, name: str, parts: dict[str, Tensor] | None = None) -> int:
    card = next(card for card in pool.cards() if card.name == name)
    cached = CachedDistance(estimator, pool.folder.parent / "cache", card.fingerprint)
    return sum(cached.missing(x) for x in (parts or images()).values())


def left_over(group: int) -> list[str]:
    """Workers of a process group that still run; Python's own clean-up process ends a moment later."""
    listed = subprocess.run(["ps", "-ewwo", "pgid=,args="], capture_output=True, text=True, check=True)
    lines = [line.split(maxsplit=1) for line in listed.stdout.splitlines()]
    return [line[1] for line in lines if int(line[0]) == group and "spawn_main" in line[1]]


def test_a_killed_worker_process_is_replaced_and_nothing_is_lost(tmp_path: Path, pool: Pool) -> None:
    estimator = troubled(tmp_path, "kill", times=2)
    assert same_bits(run(pool, estimator, Processes(workers=2)), expected(pool, estimator))
    assert estimator.met == 2


@pytest.mark.parametrize(
    ("launcher", "trouble", "error"),
    [
        (Inline(), "raise", r"RuntimeError: the search broke down \(launching_examples\.py, line \d+\)$"),
        (Processes(2, retries=1), "raise", r"RuntimeError: the search broke down .* \(tried 2 times\)$"),
        (Processes(2, retries=1), "kill", r"its worker process was ended by SIGKILL .* \(tried 2 times\)$"),
    ],
    ids=["inline", "processes raise", "processes kill"],
)
def test_a_version_that_fails_is_named_and_the_others_are_kept(
    tmp_path: Path, pool: Pool, launcher: Launcher, trouble: str, error: str
) -> None:
    estimator = troubled(tmp_path, trouble, times=99)
    with pytest.raises(VersionError, match=rf"version {VICTIM}, \w+ inputs \d+ to \d+: {error}") as caught:
        run(pool, estimator, launcher)
    assert "of 1 of 3 versions" in str(caught.value)
    assert missing(pool, estimator, "narrow") == missing(pool, estimator, "wide") == 0
    assert missing(pool, estimator, VICTIM) > 0


def test_an_interrupt_in_this_process_keeps_finished_chunks(tmp_path: Path, pool: Pool) -> None:
    estimator = troubled(tmp_path, "interrupt", times=1)
    with pytest.raises(KeyboardInterrupt):
        run(pool, estimator)
    assert missing(pool, estimator, VICTIM) == 71 - 2 * CHUNK - 1  # one of these stands in another place too
    assert same_bits(run(pool, estimator), expected(pool, estimator))


def test_an_interrupt_ends_all_processes_and_keeps_finished_chunks(tmp_path: Path, pool: Pool) -> None:
    estimator = troubled(tmp_path, "hang", times=1)
    (tmp_path / "run.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "run.py"), str(tmp_path), "processes"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that started the tests in the background has told all its children to ignore interrupts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while estimator.met == 0 or missing(pool, estimator, "narrow") > 0:
        assert process.poll() is None
        time.sleep(0.1)
    assert left_over(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert not left_over(process.pid)
    assert missing(pool, estimator, VICTIM) <= 71 - 2 * CHUNK
    assert same_bits(run(pool, estimator), expected(pool, estimator))


def test_a_terminated_launcher_ends_its_workers_and_leaves_no_images(tmp_path: Path, pool: Pool) -> None:
    estimator, temporary = troubled(tmp_path, "hang", times=1), tmp_path / "temporary"
    temporary.mkdir()
    (tmp_path / "run.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "run.py"), str(tmp_path), "processes"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, stderr=subprocess.DEVNULL)
    while estimator.met == 0:
        assert process.poll() is None
        time.sleep(0.1)
    assert list(temporary.glob("deepfailguard-images-*"))
    process.terminate()
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    assert not list(temporary.glob("deepfailguard-images-*"))
    assert not left_over(process.pid)


def test_a_program_without_main_guard_is_told_so(tmp_path: Path, pool: Pool) -> None:
    body = SCRIPT.replace('if __name__ == "__main__":', "if True:").replace('"hang", times=1', '"raise", times=0')
    (tmp_path / "run.py").write_text(body)
    command = [sys.executable, str(tmp_path / "run.py"), str(tmp_path), "processes"]
    ran = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 1
    assert "exit code 1 before its first answer; a likely reason:" in ran.stderr
    assert 'lacks `if __name__ == "__main__":`' in ran.stderr


def test_an_estimator_that_cannot_travel_is_named(tmp_path: Path, pool: Pool) -> None:
    class Local(Troubled):
        pass

    with pytest.raises(ConfigurationError, match=r"cannot be sent to another process.*at the top of a module"):
        run(pool, Local(tmp_path / "marks", "raise", times=0), Processes(workers=1))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of two nodes with one core each, as far as Ray knows."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100_000_000}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    cluster.second = cluster.add_node(**node)
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()


def small(pool: Pool) -> dict[str, Any]:
    """One version and three chunks without repeated images."""
    part = images()["calibration"][: 3 * CHUNK]
    return {"cards": [card for card in pool.cards() if card.name == VICTIM], "parts": {"calibration": part}}


def test_a_killed_ray_worker_is_replaced_and_nothing_is_lost(tmp_path: Path, pool: Pool, cluster: Any) -> None:
    estimator = troubled(tmp_path, "kill", times=1)
    launcher = RayData(workers=2, address=cluster.address)
    choice = small(pool)
    assert same_bits(run(pool, estimator, launcher, **choice), expected(pool, estimator, **choice))
    assert estimator.met == 1


@pytest.mark.parametrize(
    ("trouble", "retries", "error"),
    [
        ("raise", 0, r"RuntimeError: the search broke down \(launching_examples\.py, line \d+\)$"),
        ("kill", 1, r"each actor that took it died .* \(tried 2 times\)$"),
    ],
    ids=["raise", "kill"],
)
def test_a_version_that_fails_on_ray_is_named_and_all_else_is_kept(
    tmp_path: Path, pool: Pool, cluster: Any, trouble: str, retries: int, error: str
) -> None:
    estimator = troubled(tmp_path, trouble, times=99)
    launcher = RayData(workers=1, address=cluster.address, retries=retries)
    choice = small(pool) | {"cards": [card for card in pool.cards() if card.name in (VICTIM, "wide")]}
    with pytest.raises(VersionError, match=rf"version {VICTIM}, calibration inputs 16 to 23: {error}"):
        run(pool, estimator, launcher, **choice)
    assert estimator.met == retries + 1
    assert missing(pool, estimator, VICTIM, choice["parts"]) == CHUNK
    assert missing(pool, estimator, "wide", choice["parts"]) == 0


def test_a_lost_ray_node_loses_nothing(tmp_path: Path, pool: Pool, cluster: Any) -> None:
    estimator = HangsOnNode(tmp_path / "marks", cluster.second.node_id)

    def lose_node() -> None:
        while not (tmp_path / "marks" / "trouble-0").exists():
            time.sleep(0.05)
        cluster.remove_node(cluster.second, allow_graceful=False)

    thread = threading.Thread(target=lose_node)
    thread.start()
    choice = small(pool)
    got = run(pool, estimator, RayData(workers=2, address=cluster.address), **choice)
    thread.join()
    assert same_bits(got, expected(pool, troubled(tmp_path, "raise", times=0), **choice))
