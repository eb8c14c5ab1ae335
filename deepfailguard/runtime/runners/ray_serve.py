"""Versions that run as Ray Serve deployments, on one machine or many; see `ray_replica` for what runs there."""

import asyncio
import logging
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, Final, TypeVar

from deepfailguard.errors import ConfigurationError, DeepfailguardError, VersionError, VersionLostError
from deepfailguard.guard.asking import Answers
from deepfailguard.runtime.base import Question
from deepfailguard.runtime.runners.ray_replica import heard

__all__ = ["RayLink", "RayServeRunner"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_SECONDS_TO_SPREAD: Final = 5.0
_SECONDS_TO_CHECK: Final = 0.2
_PAUSE: Final = 0.1
_LEAST_PATIENCE: Final = 0.1
_PATIENCE: Final = 2.0  # times the longest that an answer took lately
_FORGETTING: Final = 0.95
_SMALL: Final = 100_000  # bytes up to which Ray sends an argument along instead of storing it


class RayLink:
    """What the runners of a guard share: a thread that waits for Ray, and the batch that they are asked about.

    It ends with the last of them.

    Example:
        link = RayLink()
        runners = [RayServeRunner(name, handle, classes=10, link=link) for name, handle in handles.items()]
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._lock = threading.Lock()
        self._stored: tuple[Question, Any] | None = None
        self._users = 0
        self._thread = threading.Thread(target=self._loop.run_forever, name="ray link", daemon=True)
        self._thread.start()

    @property
    def closed(self) -> bool:
        """Whether it can no longer be used."""
        return self._loop.is_closed()

    def submit(self, call: Coroutine[Any, Any, T]) -> "Future[T]":
        """Run it on the thread."""
        return asyncio.run_coroutine_threadsafe(call, self._loop)

    def images_of(self, question: Question) -> Any:
        """Its images as an argument of a call on Ray; put into the object store once, however many are asked it."""
        import ray

        with self._lock:
            if self._stored is None or self._stored[0] is not question:
                plain = question.images.detach().cpu().contiguous().numpy()
                self._stored = (question, plain if plain.nbytes <= _SMALL else ray.put(plain))
            return self._stored[1]

    def enter(self) -> None:
        """Somebody uses it."""
        with self._lock:
            self._users += 1

    def leave(self) -> None:
        """Somebody uses it no more; the last one ends the thread, and what is under way is given up."""
        with self._lock:
            self._users -= 1
            if self._users or self.closed:
                return
            self._stored = None
        asyncio.run_coroutine_threadsafe(_cancel_all(), self._loop).result(_SECONDS_TO_SPREAD)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_SECONDS_TO_SPREAD)
        self._loop.close()


class RayServeRunner:
    """Runs a version by its Ray Serve deployment, see `version_deployment`.

    A call whose replica is lost on the way is made again on another one. A question that takes twice as long as any did
    lately is asked of a second replica too, and the first answer counts: a replica that hangs, or whose machine went
    silent, then costs no more than that. Who is abandoned is left to itself: a replica takes one question at a time,
    so one that hangs gets no other, and ends itself after its `hang_seconds`.

    Args:
        name: the version's.
        handle: a `DeploymentHandle` of the version's deployment.
        classes: K.
        link: shared by all runners of a guard.
        retries: how many times a lost call is made again.
        retry_seconds: that they may take together; where no replica is left, that long is waited for one.
    """

    parallel = True

    def __init__(
        self, name: str, handle: Any, classes: int, link: RayLink, *, retries: int = 2, retry_seconds: float = 1.0
    ) -> None:
        self.name = name
        self._handle = handle
        self._classes = classes
        self._link = link
        self._retries = retries
        self._retry_seconds = retry_seconds
        self._lock = threading.Lock()
        self._calls: set[Future[Any]] = set()
        self._started = False
        self._closed = False
        self._longest = 0.0
        link.enter()

    @property
    def busy(self) -> bool:
        """Whether something is under way; what was abandoned is not, other replicas are free."""
        with self._lock:
            return bool(self._calls)

    def start(self) -> "Future[None]":
        """Wait for a replica; all that run already load fresh weights first, but for the first time."""
        return self._submit(self._start())

    def ask(self, question: Question) -> "Future[Answers]":
        """The answers of one replica."""
        return self._submit(self._ask(question))

    def check_weights(self, seconds: float) -> "Future[tuple[str, ...]]":
        """Those of one replica, another one each time; none if all are busy: each looks at its own besides."""
        return self._submit(self._check_weights(seconds))

    def memory(self) -> int | None:
        """Not known: replicas have machines and limits of their own."""
        return None

    def abandon(self) -> None:
        """Wait no longer for what is under way."""
        with self._lock:
            calls = tuple(self._calls)
        for call in calls:
            call.cancel()

    def close(self) -> None:
        """Use the deployment no more; it goes on, for others or until its application ends."""
        if not self._closed:
            self._closed = True
            self.abandon()
            self._link.leave()

    def _submit(self, call: Coroutine[Any, Any, T]) -> "Future[T]":
        if self._closed or self._link.closed:
            call.close()
            failed: Future[T] = Future()
            failed.set_exception(ConfigurationError(f"the runner of version {self.name!r} was closed; make a new one"))
            return failed
        future = self._link.submit(call)
        with self._lock:
            self._calls.add(future)
        future.add_done_callback(self._forget)
        return future

    def _forget(self, call: "Future[Any]") -> None:
        with self._lock:
            self._calls.discard(call)

    async def _start(self) -> None:
        if self._started:
            await self._renew()
        while not await self._is_ready():
            await asyncio.sleep(_PAUSE)
        self._started = True

    async def _is_ready(self) -> bool:
        """Whether a replica is there; Ray starts others for those that are lost, for as long as anybody waits."""
        try:
            await self._call("ready")
        except VersionLostError:
            return False
        return True

    async def _check_weights(self, seconds: float) -> tuple[str, ...]:
        try:
            async with asyncio.timeout(seconds + _SECONDS_TO_CHECK):
                changed: tuple[str, ...] = await self._call("check_weights", seconds)
        except (TimeoutError, VersionLostError):  # that says nothing of weights; a question will find out more
            return ()
        return changed

    async def _ask(self, question: Question) -> Answers:
        images = self._link.images_of(question)
        sent = await self._ask_twice_if_need_be(images, question.needs, question.measured)
        return heard(sent, self.name, self._classes, len(question.images))

    async def _ask_twice_if_need_be(self, *arguments: Any) -> Any:
        call, second = asyncio.ensure_future(self._call("ask", *arguments)), None
        start, patience = time.monotonic(), max(_LEAST_PATIENCE, _PATIENCE * self._longest)
        try:
            if (await asyncio.wait([call], timeout=patience))[0]:
                self._longest = max(time.monotonic() - start, _FORGETTING * self._longest)
                return call.result()
            second = asyncio.ensure_future(self._call("ask", *arguments))
            return await _first_answer(call, second)
        finally:
            for each in filter(None, (call, second)):
                each.cancel()

    async def _renew(self) -> None:
        """Tell all replicas; one that cannot be told is lost or about to be, and fresh ones have fresh weights."""
        try:
            told = self._handle.broadcast("renew")
            await told.results_async(timeout_s=_SECONDS_TO_SPREAD, return_exceptions=True)
        except Exception as error:
            logger.warning("not all replicas of version %r could be told to load again: %s", self.name, error)

    async def _call(self, method: str, *args: Any) -> Any:
        from ray.exceptions import RayError, RayTaskError
        from ray.serve.exceptions import RayServeException

        lost: Exception | None = None
        end: float | None = None  # the first try has all the time that its asker has
        for _ in range(1 + self._retries):
            try:
                async with asyncio.timeout_at(end):
                    return await getattr(self._handle, method).remote(*args)
            except RayTaskError as error:
                raise self._own_error(error) from error
            except (RayError, RayServeException, TimeoutError) as error:
                lost, end = error, end or asyncio.get_running_loop().time() + self._retry_seconds
        raise VersionLostError(
            f"version {self.name!r} was lost on Ray, and no other replica took over: {_first_line(lost)}"
        ) from lost

    def _own_error(self, error: Exception) -> DeepfailguardError:
        """What a replica raised, as an error of ours."""
        cause = getattr(error, "cause", error)  # without the traceback of a far machine
        if isinstance(cause, DeepfailguardError):
            return cause
        return VersionError(f"version {self.name!r} failed on Ray: {_first_line(cause)}")


async def _first_answer(call: "asyncio.Future[Any]", second: "asyncio.Future[Any]") -> Any:
    """That of the call that ends first; the second one counts only if it brings one."""
    done, _ = await asyncio.wait([call, second], return_when=asyncio.FIRST_COMPLETED)
    if call in done or second.exception() is not None:
        return await call
    return second.result()


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _first_line(error: object) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]
