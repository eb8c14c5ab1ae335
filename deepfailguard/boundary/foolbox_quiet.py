"""foolbox without its lines on the root logger."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["foolbox_silent"]


@contextmanager
def foolbox_silent(*files: str) -> Iterator[None]:
    """Drop the lines that these files of foolbox's attacks log on the root logger.

    A handler must be there meanwhile, or `logging.info` would install one for good.
    """

    def others(record: logging.LogRecord) -> bool:  # one per call, so that threads do not remove each other's
        parts = Path(record.pathname).parts
        return parts[-3:-1] != ("foolbox", "attacks") or parts[-1] not in files

    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)
    root.addFilter(others)
    try:
        yield
    finally:
        root.removeFilter(others)
        root.removeHandler(handler)
