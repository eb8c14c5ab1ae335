"""Gathers new cache entries into shards that are neither too many nor written too late."""

import threading
import time
from collections.abc import Mapping
from typing import Any

from deepfailguard.boundary.shards import Entry, ShardFolder
from deepfailguard.store import save_json

__all__ = ["WriteBuffer"]

_SECONDS_BETWEEN_SHARDS = 5.0
_FEWEST = 64  # entries that are worth a shard of their own, unless this is the end


class WriteBuffer:
    """Entries that are not on disk yet.

    They are written when there are `flush_every` of them or, if they fill a chunk (at least 64), every few
    seconds and at the end of a call: a killed bulk run loses seconds, and live use with single images does
    not leave a file for each.

    Args:
        shards: where they are written.
        manifest: JSON for people who find the folder; the shards themselves carry what must be checked.
        flush_every: this many are written at once, whatever the time.
        chunk: how many images are computed at once.
    """

    def __init__(self, shards: ShardFolder, manifest: Mapping[str, Any], flush_every: int, chunk: int) -> None:
        self.shards = shards
        self.manifest = manifest
        self.flush_every = flush_every
        self.worth = max(chunk, _FEWEST)
        self._waiting: dict[bytes, Entry] = {}
        self._written_at = time.monotonic()
        self._lock = threading.RLock()

    def add(self, entries: Mapping[bytes, Entry]) -> None:
        """Take the entries of a finished chunk."""
        with self._lock:
            if not self._waiting:
                self.shards.folder.mkdir(parents=True, exist_ok=True)
            self._waiting.update(entries)
            overdue = time.monotonic() - self._written_at >= _SECONDS_BETWEEN_SHARDS
            if len(self._waiting) >= self.flush_every or (overdue and len(self._waiting) >= self.worth):
                self.flush()

    def end_call(self) -> None:
        """Write what waits if it is worth a shard."""
        if len(self._waiting) >= self.worth:
            self.flush()

    def flush(self) -> None:
        """Write what waits; it goes on waiting if that fails."""
        with self._lock:
            if not self._waiting:
                return
            manifest = self.shards.folder / "manifest.json"
            if not manifest.exists():
                save_json(manifest, self.manifest)
            self.shards.write(self._waiting)
            self._waiting = {}
            self._written_at = time.monotonic()

    def rescue(self) -> None:
        """Write what waits for an owner that went away without closing; not into a folder that was deleted."""
        if self.shards.folder.is_dir():
            self.flush()
