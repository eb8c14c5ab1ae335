"""A guard in a process of its own, as the server sees it."""

import logging
import os
import socket
import threading
import time
from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Final, Self

from torch import Tensor

from deepfailguard.errors import GuardLostError
from deepfailguard.evaluation.swap_gate import SwapGate
from deepfailguard.guard.saved import GuardCard
from deepfailguard.guard.verdict import Verdict
from deepfailguard.runtime.runners.spawned import deaf_to_interrupts
from deepfailguard.runtime.settings import Settings
from deepfailguard.runtime.status import Status
from deepfailguard.serving.guard_worker import GuardOrder, packed, run_guard

__all__ = ["GuardProcess"]

_SECONDS_TO_END: Final = 10.0
_GLANCE: Final = 0.1
_TIMES: Final = 2.0  # the deadline, and
_GRACE: Final = 5.0  # seconds more: after that its process hangs
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 60.0
_SETTLED: Final = 60.0  # seconds after which a process that dies is not taken for one that cannot live

logger = logging.getLogger(__name__)


class GuardProcess:
    """Runs a saved guard in a process of its own, so that reading requests and computing answers share no lock.

    If that process dies, or gives no verdict long after the deadline (a version that runs in it may take it down, or
    hang with Python's lock), those who wait are told so, and another one is started from the guard's folder and its
    state; until then all who ask are told so, too.

    Args:
        order: which guard, and how.

    Raises:
        DeepfailguardError: the guard cannot be loaded; what its process raised.

    Example:
        with GuardProcess(GuardOrder(Path("outputs/guard"))) as guard:
            GuardServer(guard).run()
    """

    def __init__(self, order: GuardOrder) -> None:
        self.order = order
        self._deadline = (order.settings or Settings()).deadline
        self._closing = threading.Event()
        self._alive = _Alive.started(order)
        self._card = self._alive.card
        self._keeper = threading.Thread(target=self._keep_alive, name="guard's keeper", daemon=True)
        self._keeper.start()

    @property
    def pid(self) -> int | None:
        """Number of the guard's process, also of one that just ended."""
        return self._alive.process.pid

    @property
    def card(self) -> GuardCard:
        """What the guard is."""
        return self._card

    def __call__(self, images: Tensor, deadline: float | None = None) -> Verdict:
        """Answer images (B, C, H, W) on the CPU; the deadline counts from when the batches before are answered.

        Raises:
            GuardLostError: the guard's process died, or did not answer and was killed.
        """
        alive = self._alive
        allowed = self._deadline if deadline is None else deadline
        try:
            verdict, card = alive.questions.ask((images.numpy(), deadline), _TIMES * allowed + _GRACE)
        except TimeoutError:
            logger.error("the guard's process gave no verdict although its deadline was %g s; it is killed", allowed)
            alive.process.kill()
            raise _lost() from None
        if card is not None:
            self._card = card
        answered: Verdict = verdict
        return answered

    def status(self) -> Status:
        """How the runtime and its versions stand."""
        status: Status = self._operate("status")
        return status

    def set_aside(self, name: str, reason: str) -> None:
        """See `GuardRuntime`."""
        self._operate("set_aside", name, reason)

    def release(self, name: str) -> None:
        """See `GuardRuntime`."""
        self._operate("release", name)

    def swap(self, leaving: str, entering: str, force: bool = False) -> SwapGate:
        """See `GuardRuntime`."""
        gate: SwapGate = self._operate("swap", leaving, entering, force)
        return gate

    def close(self) -> None:
        """Let the guard answer what it was asked, save its state and end."""
        self._closing.set()
        self._alive.hang_up()
        self._keeper.join(2 * _SECONDS_TO_END)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.close()

    def _operate(self, name: str, *arguments: object) -> Any:
        return self._alive.operator.ask((name, arguments))

    def _keep_alive(self) -> None:
        """Start the guard anew whenever its process dies, the later the sooner that happened after its start."""
        pause = _FIRST_PAUSE
        while not self._closing.is_set():
            start = time.monotonic()
            while self._alive.process.is_alive() and not self._closing.wait(_GLANCE):
                pass
            if time.monotonic() - start > _SETTLED:
                pause = _FIRST_PAUSE
            while not self._closing.wait(pause):
                pause = min(2 * pause, _LONGEST_PAUSE)
                if self._starts_anew():
                    break
        self._alive.end()

    def _starts_anew(self) -> bool:
        logger.error("the guard's process ended with exit code %s; starting another", self._alive.process.exitcode)
        try:
            self._alive = _Alive.started(self.order)
        except Exception as error:  # the disk may be away for a while
            logger.error("the guard could not be started again: %s", error)
            return False
        self._card = self._alive.card
        logger.info("the guard serves again")
        return True


class _Alive:
    """A process that has loaded the guard, and the two lines to it."""

    def __init__(self, process: BaseProcess, questions: "_Line", operator: "_Line", card: GuardCard) -> None:
        self.process = process
        self.questions = questions
        self.operator = operator
        self.card = card

    @classmethod
    def started(cls, order: GuardOrder) -> Self:
        """Start a process and wait until it has loaded the guard.

        Raises:
            GuardLostError: it died.
            DeepfailguardError: it could not load the guard.
        """
        context = get_context("spawn")  # what this process does with threads and GPUs must not be inherited
        ours, theirs = zip(context.Pipe(), context.Pipe(), strict=True)
        level = logging.getLogger().getEffectiveLevel()
        process = context.Process(target=run_guard, args=(order, *theirs, level), name="guard")
        try:
            with deaf_to_interrupts():
                process.start()
        finally:
            for line in theirs:
                line.close()
        try:
            error, card = ours[0].recv()
            if error is not None:
                raise error
        except EOFError:
            process.join()
            raise GuardLostError(
                f"the guard's process ended with exit code {process.exitcode} while it loaded the guard"
            ) from None
        except BaseException:
            process.kill()
            raise
        return cls(process, _Line(ours[0], "answers"), _Line(ours[1], "operator"), card)

    def hang_up(self) -> None:
        """Say nothing more to it, whereupon it ends."""
        self.questions.close()
        self.operator.close()

    def end(self) -> None:
        """Let it end, or kill it if it does not."""
        self.hang_up()
        self.process.join(_SECONDS_TO_END)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


class _Line:
    """Questions to a process, answered in their order; any thread may ask, and waits for its own answer only."""

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._asked: deque[Future[Any]] = deque()
        self._broken = False
        self._listener = threading.Thread(target=self._listen, name=name, daemon=True)
        self._listener.start()

    def ask(self, message: object, seconds: float | None = None) -> Any:
        """What the process says to it.

        Args:
            message: is said to it.
            seconds: that it may take for each message that waits, this one included; None for as long as it wants.

        Raises:
            GuardLostError: it died.
            TimeoutError: it took longer.
        """
        content, heard = packed(message), Future[Any]()
        with self._lock:  # whose question goes first hears first
            if self._broken:
                raise _lost()
            self._asked.append(heard)
            waiting = len(self._asked)
            with suppress(OSError):  # the listener notices too
                self._connection.send_bytes(content)
        return heard.result(None if seconds is None else waiting * seconds)

    def close(self) -> None:
        """Say nothing more; the process ends when it has answered."""
        with socket.socket(fileno=os.dup(self._connection.fileno())) as end, suppress(OSError):
            end.shutdown(socket.SHUT_WR)

    def _listen(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                error, told = self._connection.recv()
                heard = self._asked.popleft()
                if error is None:
                    heard.set_result(told)
                else:
                    heard.set_exception(error)
        with self._lock:
            self._broken = True
            while self._asked:
                self._asked.popleft().set_exception(_lost())


def _lost() -> GuardLostError:
    return GuardLostError("the guard's process ended, and another one is being started; ask again in a few seconds")
