"""Distances on disk: a folder of small Parquet files that several processes may write to.

A shard is never changed. Its name is the hash of its bytes, so damage is noticed before a byte is parsed,
and two processes that write the same entries write the same file. Shards only come (`write`) or are replaced
by one that holds all their entries (`compact`), so a reader needs no lock.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from deepfailguard.data.hashing import HASH_BYTES
from deepfailguard.errors import CorruptFileError
from deepfailguard.store import atomic_path

__all__ = ["Entry", "ShardFolder", "merge"]

logger = logging.getLogger(__name__)
_OWNER = b"deepfailguard.owner"


@dataclass(frozen=True, slots=True, order=True)
class Entry:
    """What is known of one image.

    Attributes:
        label: the version's answer, -1 for none.
        size: boundary distance, a float32 value.
        found: whether the search crossed the boundary.
    """

    label: int
    size: float
    found: bool


def merge(known: dict[bytes, Entry], new: Mapping[bytes, Entry]) -> None:
    """Add entries in place. Of two for one image the smaller stays, whichever came first.

    Two processes may have computed an image in chunks of different size, and differ by rounding; the rule
    makes all readers agree.
    """
    for image, entry in new.items():
        known[image] = min(entry, known.get(image, entry))


class ShardFolder:
    """The shards of one version under one setting.

    Args:
        folder: it is made at the first write.
        owner: names version and settings; a shard of another owner is set aside like a damaged one.
    """

    def __init__(self, folder: Path, owner: str) -> None:
        self.folder = folder
        self.owner = owner
        self._seen: set[str] = set()

    def read_new(self) -> dict[bytes, Entry]:
        """Entries of the shards that were not read before."""
        return self._read(lambda name: name not in self._seen)

    def write(self, entries: Mapping[bytes, Entry]) -> Path:
        """Write the entries as one shard, atomically."""
        content = _to_parquet(entries, self.owner)
        path = self.folder / f"shard-{_name(content)}.parquet"
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
        self._seen.add(path.name)
        return path

    def compact(self) -> int:
        """Replace all shards by one; returns how many entries it holds. Safe while others read and write."""
        before = self._names()
        entries = self._read(lambda name: name in before)
        if not entries:
            return 0
        merged = self.write(dict(sorted(entries.items())))
        for name in before - {merged.name}:
            (self.folder / name).unlink(missing_ok=True)
        return len(entries)

    def _names(self) -> set[str]:
        return {path.name for path in self.folder.glob("shard-*.parquet")}

    def _read(self, wanted: Callable[[str], bool]) -> dict[bytes, Entry]:
        entries: dict[bytes, Entry] = {}
        while True:
            vanished = False
            for name in sorted(filter(wanted, self._names())):
                try:
                    merge(entries, self._read_one(self.folder / name))
                except FileNotFoundError:
                    vanished = True  # another process compacted: what it held is in a shard of another name
            if not vanished:
                return entries

    def _read_one(self, path: Path) -> dict[bytes, Entry]:
        content = path.read_bytes()
        try:
            entries = _from_parquet(content, path.stem.removeprefix("shard-"), self.owner)
        except CorruptFileError as error:
            aside = path.with_name(path.name + ".corrupt")
            logger.warning("%s: %s; set aside as %s, its entries will be computed again", path, error, aside.name)
            with suppress(OSError):  # another process was faster, or the folder is read-only
                path.rename(aside)
            return {}
        self._seen.add(path.name)
        return entries


def _name(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _to_parquet(entries: Mapping[bytes, Entry], owner: str) -> bytes:
    values = list(entries.values())
    table = pa.table(
        {
            "image": pa.array(list(entries), pa.binary(HASH_BYTES)),
            "label": pa.array([entry.label for entry in values], pa.int32()),
            "size": pa.array([entry.size for entry in values], pa.float32()),
            "found": pa.array([entry.found for entry in values], pa.bool_()),
        }
    ).replace_schema_metadata({_OWNER: owner.encode()})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, write_page_checksum=True)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _from_parquet(content: bytes, name: str, owner: str) -> dict[bytes, Entry]:
    if _name(content) != name:
        raise CorruptFileError("it was damaged, its content does not match the checksum in its name")
    try:
        table = pq.read_table(pa.BufferReader(content), page_checksum_verification=True, use_threads=False)
        columns: Iterable[list[Any]] = [table[column].to_pylist() for column in ("image", "label", "size", "found")]
    except (pa.ArrowException, OSError, KeyError) as error:
        raise CorruptFileError(f"it is not a shard that deepfailguard wrote: {error}") from error
    if (table.schema.metadata or {}).get(_OWNER) != owner.encode():
        raise CorruptFileError("it holds distances of another version or of other settings")
    return {image: Entry(label, size, found) for image, label, size, found in zip(*columns, strict=True)}
