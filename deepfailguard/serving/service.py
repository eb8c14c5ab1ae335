"""What the routes of one server share."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from deepfailguard.errors import GuardLostError
from deepfailguard.runtime.status import Status
from deepfailguard.serving.base import Runtime
from deepfailguard.serving.batching import Batcher
from deepfailguard.serving.limits import Door
from deepfailguard.serving.metrics import Metrics
from deepfailguard.serving.pictures import Decoder
from deepfailguard.serving.refusing import LOST_FOR, RefusedError
from deepfailguard.serving.settings import ServerSettings

__all__ = ["Service"]

_FRESH: Final = 0.2  # seconds

T = TypeVar("T")


class Service:
    """A guard with what stands between it and its clients.

    Args:
        runtime: the guard.
        settings: what is allowed.

    Attributes:
        runtime: the guard.
        settings: what is allowed.
        door: who is inside.
        batcher: asks the guard about many requests together.
        decoder: reads pictures.
        metrics: for Prometheus.
    """

    def __init__(self, runtime: Runtime, settings: ServerSettings) -> None:
        self.runtime = runtime
        self.settings = settings
        self.door = Door()
        self.metrics = Metrics(lambda: self.batcher.images_waiting, lambda: self.batcher.requests, settings.max_batch)
        self.batcher = Batcher(runtime, settings, self.metrics.batch)
        self.decoder = Decoder(settings)
        self._operator = ThreadPoolExecutor(1, "operator")
        self._observer = ThreadPoolExecutor(1, "observer")
        self._status: tuple[float, asyncio.Future[Status]] | None = None

    async def status(self) -> Status:
        """How the guard stands; a fifth of a second old at most, so that nobody can wear it out by asking.

        Raises:
            RefusedError: its process died.
        """
        now, known = time.monotonic(), self._status
        if known is None or known[1].get_loop() is not asyncio.get_running_loop():
            known = None  # nothing, or of an application that was stopped
        if known is None or (known[1].done() and now - known[0] > _FRESH):
            known = self._status = now, asyncio.ensure_future(_told(self._observer, self.runtime.status))
        return await asyncio.shield(known[1])  # who goes away must not take the others' answer along

    async def ready(self) -> bool:
        """Whether new requests are welcome: enough versions serve, and the server is not shutting down."""
        try:
            return not self.door.closing and (await self.status()).ready
        except RefusedError:
            return False

    async def in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        """Do what may have to wait for the guard, such that no request waits for it.

        Raises:
            RefusedError: the guard's process died.
        """
        return await _told(self._operator, work, *arguments)

    def forget_status(self) -> None:
        """Ask the guard itself next time: it was changed."""
        self._status = None

    def close(self) -> None:
        """End the threads; the guard is its owner's."""
        self.batcher.close()
        self.decoder.close()
        self._operator.shutdown(wait=False)
        self._observer.shutdown(wait=False)


async def _told(thread: ThreadPoolExecutor, work: Callable[..., T], *arguments: Any) -> T:
    try:
        return await asyncio.get_running_loop().run_in_executor(thread, work, *arguments)
    except GuardLostError as error:
        raise RefusedError(503, str(error), LOST_FOR) from error
