"""The distance cache under killed processes, two processes at once and damaged files."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from deepfailguard.boundary.cache import CachedDistance
from deepfailguard.boundary.deepfool import FoolboxDeepFool
from deepfailguard.errors import CacheMissError
from deepfailguard.identity import weights_fingerprint
from deepfailguard.seeding import generator, seed_everything
from deepfailguard.types import Distances

ROOT = Path(__file__).parents[2]
CHUNK, COUNT = 8, 45

# Runs in another process: the same model and images, and death in the middle of a chunk's computation.
SCRIPT = """
import os, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
import test_cache as shared

folder, chunks, cut = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
search = shared.FoolboxDeepFool.__call__

def search_or_die(estimator, model, x):
    global chunks
    if chunks == 0:
        os._exit(9)
    chunks -= 1
    return search(estimator, model, x)

shared.FoolboxDeepFool.__call__ = search_or_die
with shared.opened(folder) as cached:
    print("ready", flush=True)
    sys.stdin.readline()
    cached(shared.model(), shared.images()[cut:])
"""

ESTIMATOR = FoolboxDeepFool(batch_size=CHUNK, candidates=3)


def model() -> nn.Module:
    with torch.random.fork_rng():
        seed_everything(0, "chaos cache")
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))


def images() -> Tensor:
    return torch.rand(COUNT, 1, 6, 6, generator=generator(0, "chaos cache"))


def opened(folder: Path) -> CachedDistance:
    return CachedDistance(ESTIMATOR, folder, weights_fingerprint(model()), flush_every=1)


def start(folder: Path, chunks: int, cut: int = 0) -> subprocess.Popen[str]:
    script = SCRIPT.format(tests=str(Path(__file__).parent))
    command = [sys.executable, "-c", script, str(folder), str(chunks), str(cut)]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> int:
    process.communicate("\n", timeout=120)
    return process.returncode


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/shard-*.parquet"))


def same_bits(one: Distances, other: Distances) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("labels", "size", "found"))


@pytest.fixture(scope="module")
def uninterrupted() -> Distances:
    torch.set_num_threads(1)
    return ESTIMATOR(model(), images())


def test_a_killed_run_resumes_and_equals_an_uninterrupted_one(tmp_path: Path, uninterrupted: Distances) -> None:
    assert finish(start(tmp_path, chunks=3)) == 9
    cached = opened(tmp_path)
    assert cached.missing(images()) == COUNT - 3 * CHUNK
    with pytest.raises(CacheMissError, match=f"{COUNT - 3 * CHUNK} of {COUNT}"):
        cached.lookup(images())
    with cached:
        assert same_bits(cached(model(), images()), uninterrupted)
    assert same_bits(opened(tmp_path).lookup(images()), uninterrupted)


def test_two_processes_at_once_fill_one_cache(tmp_path: Path, uninterrupted: Distances) -> None:
    # One starts at the front, one two chunks later; both are let go only when both are ready.
    both = [start(tmp_path, chunks=99), start(tmp_path, chunks=99, cut=2 * CHUNK)]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    assert [finish(process) for process in both] == [0, 0]
    assert list(tmp_path.glob("*/*.partial")) == []
    assert same_bits(opened(tmp_path).lookup(images()), uninterrupted)


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    with opened(tmp_path) as cached:
        cached(model(), images())
    assert len(shards(tmp_path)) == 6
    return tmp_path


@pytest.mark.parametrize("where", [0, 0.3, 0.5, 0.7, -1])
def test_a_flipped_byte_is_noticed_reported_and_computed_again(
    filled: Path, uninterrupted: Distances, caplog: pytest.LogCaptureFixture, where: float
) -> None:
    victim = shards(filled)[2]
    content = bytearray(victim.read_bytes())
    content[-1 if where < 0 else int(where * len(content))] ^= 0x10
    victim.write_bytes(content)
    cached = opened(filled)
    assert 0 < cached.missing(images()) <= CHUNK
    assert victim.name in caplog.text
    assert "set aside" in caplog.text
    assert victim.with_name(f"{victim.name}.corrupt").exists()
    with cached:
        assert same_bits(cached(model(), images()), uninterrupted)
    assert same_bits(opened(filled).lookup(images()), uninterrupted)


@pytest.mark.parametrize("kept", [0, 3, 200])
def test_a_torn_shard_costs_only_its_own_entries(filled: Path, uninterrupted: Distances, kept: int) -> None:
    victim = shards(filled)[0]
    victim.write_bytes(victim.read_bytes()[:kept])
    assert 0 < opened(filled).missing(images()) <= CHUNK
    with opened(filled) as cached:
        assert same_bits(cached(model(), images()), uninterrupted)


def test_compacting_does_not_spread_damage(filled: Path) -> None:
    victim = shards(filled)[1]
    victim.write_bytes(victim.read_bytes()[:-1])
    kept = opened(filled).compact()
    assert COUNT - CHUNK <= kept < COUNT
    assert len(shards(filled)) == 1
    assert opened(filled).missing(images()) == COUNT - kept


def test_a_half_written_shard_of_a_killed_process_is_no_shard(filled: Path, uninterrupted: Distances) -> None:
    place = shards(filled)[0].parent
    (place / ".shard-0123.parquet.abcd.partial").write_bytes(b"PAR1")
    assert same_bits(opened(filled).lookup(images()), uninterrupted)


def test_a_failed_write_raises_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: Distances
) -> None:
    cached = opened(tmp_path)

    def full(_: Path, __: bytes) -> int:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="no space left"):
            cached(model(), images())
    assert shards(tmp_path) == []
    with cached:
        assert same_bits(cached(model(), images()), uninterrupted)
    assert same_bits(opened(tmp_path).lookup(images()), uninterrupted)
