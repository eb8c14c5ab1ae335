import hashlib
import logging
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deepfailguard.boundary.shards import Entry, ShardFolder, merge


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


ENTRIES = {key(i): Entry(label=i % 3 - 1, size=i * 0.125, found=i % 2 == 0) for i in range(5)}


def test_what_is_written_is_read_by_another_process(tmp_path: Path) -> None:
    path = ShardFolder(tmp_path, "owner").write(ENTRIES)
    reader = ShardFolder(tmp_path, "owner")
    assert reader.read_new() == ENTRIES
    assert reader.read_new() == {}
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


def test_a_shard_is_plain_parquet_with_the_promised_columns(tmp_path: Path) -> None:
    table = pq.read_table(ShardFolder(tmp_path, "owner").write(ENTRIES), page_checksum_verification=True)
    assert table.schema.names == ["image", "label", "size", "found"]
    assert table.schema.types == [pa.binary(16), pa.int32(), pa.float32(), pa.bool_()]
    assert table["size"].to_pylist() == [0.0, 0.125, 0.25, 0.375, 0.5]


def test_equal_entries_make_one_file(tmp_path: Path) -> None:
    assert ShardFolder(tmp_path, "owner").write(ENTRIES) == ShardFolder(tmp_path, "owner").write(ENTRIES)


def test_a_shard_of_another_owner_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = ShardFolder(tmp_path / "a", "first").write(ENTRIES)
    (tmp_path / "b").mkdir()
    shutil.copy(path, tmp_path / "b")
    assert ShardFolder(tmp_path / "b", "second").read_new() == {}
    assert "of another version or of other settings" in caplog.text
    assert path.name in caplog.text


def test_a_parquet_file_with_other_columns_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"image": [1]}), sink)
    content = sink.getvalue().to_pybytes()
    name = f"shard-{hashlib.blake2b(content, digest_size=16).hexdigest()}.parquet"
    (tmp_path / name).write_bytes(content)
    assert ShardFolder(tmp_path, "owner").read_new() == {}
    assert "not a shard that deepfailguard wrote" in caplog.text
    assert (tmp_path / f"{name}.corrupt").exists()


def test_compacting_keeps_every_entry_and_leaves_one_file(tmp_path: Path) -> None:
    writer = ShardFolder(tmp_path, "owner")
    for image, entry in ENTRIES.items():
        writer.write({image: entry})
    assert len(list(tmp_path.iterdir())) == 5
    assert ShardFolder(tmp_path, "owner").compact() == 5
    assert ShardFolder(tmp_path, "owner").compact() == 5  # again: nothing to do, nothing lost
    assert len(list(tmp_path.iterdir())) == 1
    assert ShardFolder(tmp_path, "owner").read_new() == ENTRIES


def test_compacting_nothing_makes_nothing(tmp_path: Path) -> None:
    assert ShardFolder(tmp_path / "new", "owner").compact() == 0
    assert not (tmp_path / "new").exists()


def test_a_reader_whose_listing_was_compacted_away_reads_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = ShardFolder(tmp_path, "owner")
    for image, entry in ENTRIES.items():
        writer.write({image: entry})
    reader = ShardFolder(tmp_path, "owner")
    listed = reader._names
    old = listed()
    ShardFolder(tmp_path, "owner").compact()
    listings = iter([old])
    monkeypatch.setattr(reader, "_names", lambda: next(listings, None) or listed())
    assert reader.read_new() == ENTRIES


def test_duplicates_are_resolved_alike_in_any_order() -> None:
    first, second = {key(0): Entry(1, 0.5, True)}, {key(0): Entry(1, 0.25, True), key(1): Entry(0, 0.0, False)}
    one: dict[bytes, Entry] = {}
    other: dict[bytes, Entry] = {}
    merge(one, first), merge(one, second)
    merge(other, second), merge(other, first)
    assert one == other == {key(0): Entry(1, 0.25, True), key(1): Entry(0, 0.0, False)}


def test_whole_shards_are_read_beside_damaged_ones(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    writer = ShardFolder(tmp_path, "owner")
    writer.write({key(0): ENTRIES[key(0)]})
    torn = writer.write({key(1): ENTRIES[key(1)]})
    torn.write_bytes(torn.read_bytes()[:-20])
    with caplog.at_level(logging.WARNING):
        assert ShardFolder(tmp_path, "owner").read_new() == {key(0): ENTRIES[key(0)]}
    assert torn.name in caplog.text
    assert not torn.exists()
    assert torn.with_name(f"{torn.name}.corrupt").exists()
