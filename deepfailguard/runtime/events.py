"""What happened, as JSON lines in a file that does not grow for ever, and the newest of it in memory."""

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, Final

__all__ = ["Event", "EventLog"]

_KEPT: Final = 50
_FILE_BYTES: Final = 10_000_000
_FILES: Final = 5
_WORRYING: Final = frozenset({"suspended", "quarantined", "not ready", "judging failed", "state ignored"})
_NOT_LOGGED: Final = frozenset({"fault", "no turn"})
"""They may come with every request; what follows from them is told."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened.

    Attributes:
        time: ISO 8601 in UTC.
        event: what, in a word or two: "fault", "suspended", "recovered", ...
        version: whom it concerns; None for the guard as a whole.
        kind: kind of fault; None if there was none.
        detail: a sentence for people.
    """

    time: str
    event: str
    version: str | None
    kind: str | None
    detail: str


class EventLog:
    """Writes events to a file, if there is one, and keeps the newest; an error of the disk is counted, not raised.

    What changes how a version or the guard stands is logged besides.

    Args:
        path: JSON lines; None to keep them in memory only. Files of 10 MB are kept, the newest five.
        clock: seconds since 1970.

    Attributes:
        lost: how many events could not be written.

    Example:
        >>> log = EventLog(None, clock=lambda: 0.0)
        >>> log.write("recovered", "resnet", detail="it passes the canary inputs")
        >>> log.newest()[0]["time"], log.newest()[0]["version"]
        ('1970-01-01T00:00:00+00:00', 'resnet')
    """

    def __init__(self, path: Path | None = None, clock: Callable[[], float] = time.time) -> None:
        self.lost = 0
        self._clock = clock
        self._newest: deque[Event] = deque(maxlen=_KEPT)
        self._lock = threading.Lock()
        self._file = None if path is None else _Lines(path, self._count_lost)

    def write(self, event: str, version: str | None = None, kind: str | None = None, detail: str = "") -> None:
        """Take note of something."""
        moment = datetime.fromtimestamp(self._clock(), UTC).isoformat()
        told = Event(moment, event, version, kind, detail)
        with self._lock:
            self._newest.append(told)
        if event not in _NOT_LOGGED:
            parts = (event, f"version {version!r}" if version else "", detail)
            logger.log(logging.WARNING if event in _WORRYING else logging.INFO, "%s", ": ".join(filter(None, parts)))
        if self._file is not None:
            self._file.emit(logging.LogRecord("", 0, "", 0, json.dumps(asdict(told), ensure_ascii=False), None, None))

    def newest(self) -> tuple[dict[str, Any], ...]:
        """The newest 50 events, the newest last."""
        with self._lock:
            return tuple(asdict(event) for event in self._newest)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _count_lost(self) -> None:
        self.lost += 1
        if self.lost == 1:
            logger.warning("an event could not be written (counted, not told again)", exc_info=True)


class _Lines(RotatingFileHandler):
    """A file of lines; who writes them must not fail for a full disk."""

    def __init__(self, path: Path, on_error: Callable[[], None]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        super().__init__(path, maxBytes=_FILE_BYTES, backupCount=_FILES - 1, encoding="utf-8")
        self.on_error = on_error

    def handleError(self, _: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        self.on_error()
