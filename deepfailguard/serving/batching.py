"""Requests that come one by one, answered together."""

import asyncio
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

from numpy.typing import NDArray

from deepfailguard.serving.answers import Answer, Batch, joined
from deepfailguard.serving.asking import Job, answer_jobs
from deepfailguard.serving.base import Runtime
from deepfailguard.serving.refusing import CLIENT_GONE, RefusedError
from deepfailguard.serving.settings import ServerSettings

__all__ = ["Batcher", "Observer"]

Observer = Callable[[Batch, float], None]
"""Is told of each batch and of the seconds that it took, in the guard's thread."""

_AHEAD: Final = 2  # batches: one is computed, one is ready
_LONGEST_RETRY: Final = 60
_SMOOTHING: Final = 0.2


@dataclass(eq=False, slots=True)
class _Item:
    """A request, or a part of one, that waits."""

    job: Job
    answer: "asyncio.Future[Answer]"
    waiting: bool = field(default=True)


class Batcher:
    """Collects images of many requests and asks the guard about them together, one batch after the other.

    While the guard is busy, requests wait; when it is done, it gets what waits, at most `max_batch` images, at once. A
    full batch is made ready while the one before is computed, so that the guard need not wait for it. While it has
    nothing to do, a first request waits at most `max_wait` for others. Requests whose clients went away, or whose time
    is over, are not computed.

    Its methods belong to the event loop.

    Args:
        runtime: the guard.
        settings: sizes and times.
        observe: is told of each batch.
    """

    def __init__(self, runtime: Runtime, settings: ServerSettings, observe: Observer) -> None:
        self.runtime = runtime
        self.settings = settings
        self.observe = observe
        self._waiting: deque[_Item] = deque()
        self._images = 0
        self._running = 0
        self._ended = 0.0  # when the last batch was done
        self._turn = threading.Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._clients: Counter[str] = Counter()
        self._speed = 0.0  # images per second, smoothed
        self._took = 0.0  # seconds for a batch, smoothed
        self._worker = ThreadPoolExecutor(_AHEAD + 1, "guard")  # one more takes a verdict apart

    @property
    def images_waiting(self) -> int:
        """How many images wait."""
        return self._images

    @property
    def requests(self) -> int:
        """How many requests wait or are being computed."""
        return self._clients.total()

    async def infer(
        self,
        images: NDArray[Any],
        client: str,
        seconds: float | None = None,
        gone: "asyncio.Future[Any] | None" = None,
    ) -> Answer:
        """The guard's answer to some images.

        Args:
            images: (B, C, H, W) floating point, B >= 1.
            client: who asks.
            seconds: what the client waits at most; the server's deadline if None, and never more than that.
            gone: is done when the client went away.

        Raises:
            RefusedError: too many wait, the time is over, the client went away, or the guard failed.
        """
        self._admit(len(images), client)
        seconds = self.settings.deadline if seconds is None else min(seconds, self.settings.deadline)
        items = self._enqueue(images, time.monotonic(), seconds)
        self._clients[client] += 1
        if gone is not None:
            gone.add_done_callback(lambda _: _cancel(items))
        try:
            async with asyncio.timeout(seconds):
                return joined([await item.answer for item in items])
        except TimeoutError:
            raise RefusedError(
                504, f"there was no answer within the deadline of {seconds:g} s; send fewer images, or ask again", 1
            ) from None
        except asyncio.CancelledError:
            if gone is None or not gone.done():
                raise
            raise RefusedError(CLIENT_GONE, "the client went away") from None
        finally:
            self._leave(items, client)

    def close(self) -> None:
        """Let the threads end once they are done."""
        self._worker.shutdown(wait=False)

    def _admit(self, images: int, client: str) -> None:
        if images > self.settings.queue:
            raise RefusedError(
                413, f"expected at most {self.settings.queue} images in a request, got {images}; send several requests"
            )
        if self._clients[client] >= self.settings.per_client:
            raise RefusedError(
                429,
                f"this client already waits for {self._clients[client]} answers; wait for some before asking more",
                self.retry_after(),
            )
        if self._images + images > self.settings.queue:
            raise RefusedError(
                503, f"{self._images} images wait, more than {self.settings.queue} may not", self.retry_after()
            )

    def retry_after(self) -> int:
        """Whole seconds in which what waits now will be done, as far as the last batches tell; >= 1."""
        seconds = self._images / self._speed if self._speed else 1.0
        return min(max(1, math.ceil(seconds)), _LONGEST_RETRY)

    def _enqueue(self, images: NDArray[Any], now: float, seconds: float) -> list[_Item]:
        most, loop = self.settings.max_batch, asyncio.get_running_loop()
        pieces = [images] if len(images) <= most else [images[i : i + most] for i in range(0, len(images), most)]
        items = [_Item(Job(piece, now + seconds), loop.create_future()) for piece in pieces]
        self._waiting.extend(items)
        self._images += len(images)
        self._consider(loop)
        return items

    def _leave(self, items: Sequence[_Item], client: str) -> None:
        """Forget a request, whether it was answered, refused or its client went away."""
        _cancel(items)
        for item in items:
            if item.waiting:
                item.waiting = False
                self._waiting.remove(item)
                self._images -= len(item.job.images)
        if self._timer is not None and not self._waiting:
            self._timer.cancel()
            self._timer = None
        self._clients[client] -= 1
        if not self._clients[client]:
            del self._clients[client]

    def _consider(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start a batch now, or when its time has come; while the guard is busy, its end starts the next one."""
        if self._images >= self.settings.max_batch and self._running < _AHEAD:
            self._start(loop)
        elif self._timer is None and not self._running:
            self._timer = loop.call_later(self.settings.max_wait, self._start, loop)

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        items = self._take()
        if not items:
            return
        self._running += 1
        jobs, began = [item.job for item in items], time.monotonic()
        images = sum(len(job.images) for job in jobs)

        def done() -> None:
            if not _tell(loop, self._go_on, loop, images, began):
                self._running -= 1

        work = self._worker.submit(
            answer_jobs, self.runtime, jobs, self.settings.deadline, self.observe, self._turn, done
        )
        work.add_done_callback(lambda work: _tell(loop, _hand_out, items, work))

    def _take(self) -> list[_Item]:
        """The requests that come next: at most a batch of them, none whose time will be over when it is computed.

        Where more is asked than can be computed, requests wait for most of their time: without looking ahead only
        those would be computed that are too late in the end.
        """
        items: list[_Item] = []
        ahead = min((1 + self._running) * self._took, self.settings.deadline / 2)
        images, ready = 0, time.monotonic() + ahead
        while self._waiting and images + len(self._waiting[0].job.images) <= self.settings.max_batch:
            item = self._waiting.popleft()
            item.waiting = False
            self._images -= len(item.job.images)
            if item.job.until > ready and not item.answer.done():
                items.append(item)
                images += len(item.job.images)
        return items

    def _go_on(self, loop: asyncio.AbstractEventLoop, images: int, began: float) -> None:
        """Give the guard what waits, before the answers to the batch that it has done are handed out."""
        self._running -= 1
        now = time.monotonic()
        seconds, self._ended = max(now - max(began, self._ended), 1e-6), now
        self._speed = _smoothed(self._speed, images / seconds)
        self._took = _smoothed(self._took, seconds)
        if not self._running or self._images >= self.settings.max_batch:
            self._start(loop)


def _smoothed(before: float, now: float) -> float:
    return now if not before else (1 - _SMOOTHING) * before + _SMOOTHING * now


def _tell(loop: asyncio.AbstractEventLoop, what: Callable[..., None], *arguments: Any) -> bool:
    """Do it on the event loop, from any thread; whether that is still possible."""
    try:
        loop.call_soon_threadsafe(what, *arguments)
    except RuntimeError:  # the loop was closed, and with it all who wait
        return False
    return True


def _hand_out(items: Sequence[_Item], work: "Future[list[Answer | RefusedError]]") -> None:
    for item, told in zip(items, work.result(), strict=True):
        if item.answer.done():
            continue
        if isinstance(told, Answer):
            item.answer.set_result(told)
        else:
            item.answer.set_exception(told)


def _cancel(items: Sequence[_Item]) -> None:
    for item in items:
        item.answer.cancel()
