from pathlib import Path

import pytest

from deepfailguard.boundary import write_buffer
from deepfailguard.boundary.shards import Entry, ShardFolder
from deepfailguard.boundary.write_buffer import WriteBuffer
from deepfailguard.store import load_json


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(write_buffer, "time", clock)
    return clock


def buffer(folder: Path, flush_every: int = 1000, chunk: int = 100) -> WriteBuffer:
    return WriteBuffer(ShardFolder(folder, "owner"), {"version": "v"}, flush_every, chunk)


def entries(start: int, count: int) -> dict[bytes, Entry]:
    return {i.to_bytes(16, "big"): Entry(0, float(i), True) for i in range(start, start + count)}


def on_disk(folder: Path) -> int:
    return len(ShardFolder(folder, "owner").read_new())


def test_enough_entries_are_written_whatever_the_time(tmp_path: Path, clock: Clock) -> None:
    waiting = buffer(tmp_path, flush_every=3)
    waiting.add(entries(0, 2))
    assert on_disk(tmp_path) == 0
    waiting.add(entries(2, 1))
    assert on_disk(tmp_path) == 3


def test_a_chunk_is_written_after_some_seconds(tmp_path: Path, clock: Clock) -> None:
    waiting = buffer(tmp_path)
    waiting.add(entries(0, 100))
    assert on_disk(tmp_path) == 0
    clock.now += 6
    waiting.add(entries(100, 1))
    assert on_disk(tmp_path) == 101
    waiting.add(entries(200, 100))
    assert on_disk(tmp_path) == 101


def test_few_entries_wait_however_long_it_takes(tmp_path: Path, clock: Clock) -> None:
    waiting = buffer(tmp_path, chunk=1)
    for i in range(63):
        clock.now += 60
        waiting.add(entries(i, 1))
        waiting.end_call()
    assert on_disk(tmp_path) == 0
    waiting.add(entries(63, 1))
    assert on_disk(tmp_path) == 64


def test_the_end_of_a_call_writes_a_chunk(tmp_path: Path, clock: Clock) -> None:
    waiting = buffer(tmp_path)
    waiting.add(entries(0, 99))
    waiting.end_call()
    assert on_disk(tmp_path) == 0
    waiting.add(entries(99, 1))
    waiting.end_call()
    assert on_disk(tmp_path) == 100


def test_flush_writes_each_entry_once_beside_the_manifest(tmp_path: Path) -> None:
    waiting = buffer(tmp_path / "new")
    waiting.flush()
    assert not (tmp_path / "new").exists()
    waiting.add(entries(0, 1))
    waiting.flush()
    waiting.flush()
    assert len(list((tmp_path / "new").glob("shard-*.parquet"))) == 1
    assert load_json(tmp_path / "new" / "manifest.json") == {"version": "v"}
