"""Decisions for the versions that are left, fitted before they are needed."""

import copy
import logging
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Final

from deepfailguard.errors import DeepfailguardError
from deepfailguard.guard.judging import for_versions
from deepfailguard.guard.saved import SavedGuard
from deepfailguard.identity import describe, digest, digest_tensors
from deepfailguard.store import load_tensors, save_tensors

__all__ = ["DerivedGuards"]

_MOST: Final = 64
"""Guards that are fitted ahead: all of six versions; of more, those with the fewest missing."""

logger = logging.getLogger(__name__)


class DerivedGuards:
    """The guards of some of a guard's versions, each fitted once on what the guard kept of its calibration.

    A thread fits them, those that were asked for in vain before the others.

    Args:
        whole: the guard of all versions.
        folder: keeps what was fitted, so that it is there after a restart; None to keep it in memory only.
    """

    def __init__(self, whole: SavedGuard, folder: Path | None = None) -> None:
        self.whole = whole
        self._folder = folder
        everybody = tuple(range(len(whole.card.names)))
        self._ready: dict[tuple[int, ...], SavedGuard | None] = {everybody: whole}
        self._wanted: deque[tuple[int, ...]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None

    def get(self, columns: Sequence[int]) -> SavedGuard | None:
        """The guard of these versions; None if it is not ready, or cannot be had. Then it is wanted before others."""
        key = tuple(columns)
        with self._changed:
            if key not in self._ready and (not self._wanted or self._wanted[0] != key):
                self._wanted.appendleft(key)
                self._changed.notify_all()
            return self._ready.get(key)

    def fit(self, columns: Sequence[int]) -> SavedGuard | None:
        """The same, waiting until it is fitted; None if it cannot be had."""
        key = tuple(columns)
        if key not in self._ready:
            made = self._make(key)
            with self._changed:
                self._ready[key] = made
        return self._ready[key]

    def fit_ahead(self, base: Sequence[int]) -> None:
        """Fit the guards of all parts of `base` in the background, the largest first."""
        with self._changed:
            self._wanted.extend(_parts(base))
            self._changed.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="derived guards", daemon=True)
                self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Wait until nothing more is to be fitted; whether that came about."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._wanted, seconds)

    def close(self) -> None:
        """Fit no more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(10.0)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._wanted or self._closed)
                if self._closed:
                    return
                key = self._wanted[0]
            made = self._ready[key] if key in self._ready else self._make(key)
            with self._changed:
                self._ready[key] = made
                self._wanted.remove(key)
                self._changed.notify_all()

    def _make(self, key: tuple[int, ...]) -> SavedGuard | None:
        try:
            return self._kept(key) or self._fitted(key)
        except Exception as error:  # the guard answers all the same, with the decision for all
            level = logging.INFO if isinstance(error, DeepfailguardError) else logging.WARNING
            names = ", ".join(self.whole.card.names[column] for column in key)
            logger.log(level, "no decision can be derived for %s alone: %s", names, error)
            return None

    def _fitted(self, key: tuple[int, ...]) -> SavedGuard:
        guard = self.whole.of_versions(list(key))
        if self._folder is not None:
            save_tensors(self._path(self._folder, key), guard.predictor.state(), {"versions": list(guard.card.names)})
        return guard

    def _kept(self, key: tuple[int, ...]) -> SavedGuard | None:
        """What was fitted before the last restart, if it is there and sound."""
        if self._folder is None or not (path := self._path(self._folder, key)).is_file():
            return None
        try:
            state = load_tensors(path).tensors
            whole, columns = self.whole, list(key)
            calibration = whole.calibration.of_versions(columns)
            service = None if whole.service is None else whole.service.of_versions(columns)
            return replace(
                whole,
                card=whole.card.of_versions(columns),
                predictor=copy.deepcopy(whole.predictor).with_state(state),
                decision=for_versions(whole.decision, columns),
                calibration=calibration,
                service=service,
            )
        except (DeepfailguardError, OSError) as error:
            logger.info("fitting a decision again, for %s: %s", path, error)
            return None

    def _path(self, folder: Path, key: tuple[int, ...]) -> Path:
        whole = self.whole
        basis = [digest_tensors(whole.predictor.state()), describe(whole.predictor), list(whole.card.names)]
        return folder / f"{digest([*basis, list(key)])[:24]}.safetensors"


def _parts(base: Sequence[int]) -> Iterator[tuple[int, ...]]:
    count = 0
    for size in range(len(base) - 1, 0, -1):
        for part in combinations(base, size):
            count += 1
            if count > _MOST:
                return
            yield part
