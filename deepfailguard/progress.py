"""Progress with the time left: a bar on a terminal, a line every few seconds in a log."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["track"]

T = TypeVar("T")
_SECONDS_BETWEEN_LINES = 15.0


def track(items: Iterable[T], total: int, label: str, quiet: bool = False) -> Iterator[T]:
    """Yield the items and show on standard error how far along they are.

    Args:
        items: what to yield.
        total: how many there are.
        label: what is being done.
        quiet: show nothing.
    """
    if quiet:
        yield from items
    elif sys.stderr.isatty():
        yield from _with_bar(items, total, label)
    else:
        yield from _with_lines(items, total, label)


def _with_bar(items: Iterable[T], total: int, label: str) -> Iterator[T]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(label, total=total)
        for item in items:
            yield item
            progress.advance(task)


def _with_lines(items: Iterable[T], total: int, label: str) -> Iterator[T]:
    start = last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last >= _SECONDS_BETWEEN_LINES and done < total:
            last = now
            left = (now - start) / done * (total - done)
            print(f"{label}: {done}/{total}, about {left:.0f} s left", file=sys.stderr, flush=True)
