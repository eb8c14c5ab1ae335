"""Clients that ask a runtime all the time, and write down what they get."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from deepfailguard.guard.verdict import Verdict
from deepfailguard.runtime.runtime import GuardRuntime

__all__ = ["Habits", "Load", "Request"]

_SECONDS_TO_END: Final = 30.0


@dataclass(frozen=True, slots=True)
class Habits:
    """What clients ask for.

    Attributes:
        clients: how many ask at the same time.
        batch: images in a request at most; any number from 1 on is as probable.
        deadlines: the shortest and the longest, in seconds; all in between are as probable.
        pause: seconds between a client's requests at most.
    """

    clients: int = 3
    batch: int = 32
    deadlines: tuple[float, float] = (0.5, 1.5)
    pause: float = 0.01


@dataclass(frozen=True, slots=True)
class Request:
    """One request and what came of it.

    Attributes:
        start: when it was made, seconds of `time.monotonic`.
        end: when the verdict came.
        deadline: in seconds.
        rows: (B,) int64 of the images.
        verdict: None if the runtime raised.
        error: what it raised; empty if it did not.
    """

    start: float
    end: float
    deadline: float
    rows: Tensor
    verdict: Verdict | None
    error: str = ""

    @property
    def overshoot(self) -> float:
        """Seconds beyond the deadline; negative if it was kept."""
        return self.end - self.start - self.deadline


class Load:
    """Asks a runtime from several threads while it is entered.

    Args:
        runtime: is asked.
        images: (L, C, H, W), L >= the largest batch.
        habits: what is asked for.
        seed: of what each client asks for.
    """

    def __init__(self, runtime: GuardRuntime, images: Tensor, habits: Habits, seed: int) -> None:
        self.runtime = runtime
        self.images = images
        self.habits = habits
        self.seed = seed
        self._insisted: int | None = None
        self._done: list[Request] = []
        self._dropped = 0
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> "Load":
        for number in range(self.habits.clients):
            thread = threading.Thread(target=self._ask_on, args=(number,), name=f"client {number}", daemon=True)
            self._threads.append(thread)
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(_SECONDS_TO_END)

    @property
    def alive(self) -> bool:
        """Whether all clients still ask."""
        return all(thread.is_alive() for thread in self._threads)

    @property
    def count(self) -> int:
        """How many requests came to an end since the start."""
        with self._changed:
            return self._dropped + len(self._done)

    @contextmanager
    def insisting(self, row: int) -> Iterator[None]:
        """Meanwhile each request that is made holds the image of this row."""
        self._insisted = row
        try:
            yield
        finally:
            self._insisted = None

    def since(self, number: int) -> list[Request]:
        """The requests that ended, from this number on."""
        with self._changed:
            return self._done[max(number - self._dropped, 0) :]

    def forget(self, number: int) -> None:
        """Keep only the requests from this number on."""
        with self._changed:
            gone = min(max(number - self._dropped, 0), len(self._done))
            del self._done[:gone]
            self._dropped += gone

    def wait(self, number: int, wanted: Callable[[Request], bool], seconds: float) -> Request | None:
        """The first request from this number on that is wanted, when it ended; None if none did within the time."""
        until = time.monotonic() + seconds
        while True:
            for request in self.since(number):
                number += 1
                if wanted(request):
                    return request
            with self._changed:
                left = until - time.monotonic()
                if self._dropped + len(self._done) <= number and (left <= 0 or not self._changed.wait(left)):
                    return None
            if time.monotonic() > until:
                return None

    def _ask_on(self, client: int) -> None:
        draw, order = random.Random(f"{self.seed}/{client}"), torch.Generator().manual_seed(self.seed * 97 + client)
        while not self._stop.is_set():
            request = self._ask(self._rows(draw, order), draw.uniform(*self.habits.deadlines))
            with self._changed:
                self._done.append(request)
                self._changed.notify_all()
            self._stop.wait(draw.uniform(0.0, self.habits.pause))

    def _rows(self, draw: random.Random, order: torch.Generator) -> Tensor:
        rows = torch.randperm(len(self.images), generator=order)[: draw.randint(1, self.habits.batch)]
        insisted = self._insisted
        if insisted is not None and not (rows == insisted).any():
            rows[draw.randrange(len(rows))] = insisted
        return rows

    def _ask(self, rows: Tensor, deadline: float) -> Request:
        images, start = self.images[rows], time.monotonic()
        try:
            verdict = self.runtime(images, deadline)
        except Exception as error:  # a request that is lost, which the campaign counts
            return Request(start, time.monotonic(), deadline, rows, None, f"{type(error).__name__}: {error}")
        end = time.monotonic()
        if len(verdict) != len(rows):
            return Request(start, end, deadline, rows, None, f"{len(verdict)} answers to {len(rows)} inputs")
        return Request(start, end, deadline, rows, verdict)
