"""A guard in a process of its own, as the server sees it."""

import logging
import os
import socket
import tempfile
import threading
import time
from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from multiprocessing import get_context, util
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
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
from deepfailguard.serving.guard_worker import PING, GuardOrder, packed, run_guard

__all__ = ["GuardProcess"]

_SECONDS_TO_END: Final = 10.0
_GLANCE: Final = 0.1
_IDLE: Final = 1.0  # seconds without a question, after which it is asked whether it is there
_TIMES: Final = 2.0  # the deadline, and
_GRACE: Final = 5.0  # seconds more: after that its process hangs
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 60.0
_SETTLED: Final = 60.0  # seconds after which a process that dies is not taken for one that cannot live
_LINES: Final = ("answers", "operator", "status")
_BEFORE_PROCESSES_ARE_JOINED: Final = 10

logger = logging.getLogger(__name__)


class GuardProcess:
    """Runs a saved guard in a process of its own, so that reading requests and computing answers share no lock.

    If that process dies, or does nothing long after the deadline (a version that runs in it may take it down, or hang
    with Python's lock), those who wait are told so, and another one is started from the guard's folder and its state;
    until then all who ask are told so, too.

    Args:
        order: which guard, and how. Without a folder for its state one is made that lasts as long as this object: who
            was set aside must stay so when the process is started anew.

    Raises:
        DeepfailguardError: the guard cannot be loaded; what its process raised.

    Example:
        with GuardProcess(GuardOrder(Path("outputs/guard"))) as guard:
            GuardServer(guard).run()
    """

    def __init__(self, order: GuardOrder) -> None:
        self._own_state = None if order.state else tempfile.TemporaryDirectory(prefix="deepfailguard-")
        self.order = replace(order, state=Path(self._own_state.name)) if self._own_state else order
        self._deadline = (order.settings or Settings()).deadline
        self._closing = threading.Event()
        try:
            self._alive = _Alive.started(self.order)
        except BaseException:
            self._forget_state()
            raise
        self._keeper = threading.Thread(target=self._keep_alive, name="guard's keeper", daemon=True)
        self._keeper.start()
        # A program that forgets to close it must end all the same: processes are waited for.
        self._at_exit = util.Finalize(self, self._closing.set, exitpriority=_BEFORE_PROCESSES_ARE_JOINED)

    @property
    def pid(self) -> int | None:
        """Number of the guard's process, also of one that just ended."""
        return self._alive.process.pid

    @property
    def card(self) -> GuardCard:
        """What the guard is."""
        return self._alive.card

    def __call__(self, images: Tensor, deadline: float | None = None) -> Verdict:
        """Answer images (B, C, H, W) on the CPU; the deadline counts from when the batches before are answered.

        Raises:
            GuardLostError: the guard's process died, or did not answer and was killed.
        """
        allowed = self._deadline if deadline is None else deadline
        verdict: Verdict = self._alive.lines["answers"].ask((images.numpy(), deadline), _TIMES * allowed + _GRACE)
        return verdict

    def status(self) -> Status:
        """How the runtime and its versions stand."""
        status: Status = self._alive.lines["status"].ask(("status", ()))
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
        self._keeper.join(2 * _SECONDS_TO_END)
        self._at_exit.cancel()
        self._forget_state()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.close()

    def _forget_state(self) -> None:
        if self._own_state is not None:
            self._own_state.cleanup()

    def _operate(self, name: str, *arguments: object) -> Any:
        return self._alive.lines["operator"].ask((name, arguments))

    def _keep_alive(self) -> None:
        """Start the guard anew whenever its process dies, the later the sooner that happened after its start."""
        pause = _FIRST_PAUSE
        while not self._closing.is_set():
            start = time.monotonic()
            self._watch()
            if time.monotonic() - start > _SETTLED:
                pause = _FIRST_PAUSE
            while not self._closing.wait(pause):
                pause = min(2 * pause, _LONGEST_PAUSE)
                if self._starts_anew():
                    break
        self._alive.end()

    def _watch(self) -> None:
        """Return when the process died, or this object is closed; kill it if it hangs."""
        process, line = self._alive.process, self._alive.lines["answers"]
        while process.is_alive() and not self._closing.wait(_GLANCE):
            if line.is_overdue() or any(each.broken for each in self._alive.lines.values()):
                logger.error("the guard's process does not answer any more, and is killed")
                process.kill()
                process.join()
            elif line.idle_for() > _IDLE:
                with suppress(GuardLostError):
                    line.send(PING, _GRACE)

    def _starts_anew(self) -> bool:
        logger.error("the guard's process ended with exit code %s; starting another", self._alive.process.exitcode)
        try:
            self._alive = _Alive.started(self.order)
        except Exception as error:  # the disk may be away for a while
            logger.error("the guard could not be started again: %s", error)
            return False
        logger.info("the guard serves again")
        return True


class _Alive:
    """A process that has loaded the guard, and the lines to it."""

    def __init__(self, process: BaseProcess, lines: dict[str, "_Line"], card: GuardCard) -> None:
        self.process = process
        self.lines = lines
        self.card = card

    @classmethod
    def started(cls, order: GuardOrder) -> Self:
        """Start a process and wait until it has loaded the guard.

        Raises:
            GuardLostError: it died.
            DeepfailguardError: it could not load the guard.
        """
        context = get_context("spawn")  # what this process does with threads and GPUs must not be inherited
        ours, theirs = zip(*(context.Pipe() for _ in _LINES), strict=True)
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
        return cls(process, {name: _Line(line, name) for name, line in zip(_LINES, ours, strict=True)}, card)

    def end(self) -> None:
        """Say nothing more to it, whereupon it ends; kill it if it does not."""
        for line in self.lines.values():
            line.close()
        self.process.join(_SECONDS_TO_END)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


class _Line:
    """Questions to a process, answered in their order; any thread may ask, and waits for its own answer only."""

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection = connection
        self._lock = threading.Lock()  # of what is asked and answered; never held while something is sent
        self._sending = threading.Lock()  # whose question goes first hears first
        self._asked: deque[tuple[Future[Any], float]] = deque()
        self._since = time.monotonic()  # when the first of them became it, or the last answer came
        self._broken = False
        threading.Thread(target=self._listen, name=name, daemon=True).start()

    def ask(self, message: object, seconds: float = float("inf")) -> Any:
        """What the process says to it, see `send`.

        Raises:
            GuardLostError: it died.
        """
        return self.send(message, seconds).result()

    def send(self, message: object, seconds: float) -> "Future[Any]":
        """Say something; what it says to that comes later.

        Args:
            message: is said.
            seconds: that it may take, counted from the answer before, until it is overdue.
        """
        content, heard = packed(message), Future[Any]()
        with self._sending:
            with self._lock:
                if self._broken:
                    raise _lost()
                if not self._asked:
                    self._since = time.monotonic()
                self._asked.append((heard, seconds))
            with suppress(OSError):  # the listener notices too
                self._connection.send_bytes(content)
        return heard

    @property
    def broken(self) -> bool:
        """Whether nothing can be asked any more."""
        return self._broken

    def is_overdue(self) -> bool:
        """Whether the process takes longer for something than it may."""
        with self._lock:
            return bool(self._asked) and time.monotonic() - self._since > self._asked[0][1]

    def idle_for(self) -> float:
        """Seconds since it had something to answer."""
        with self._lock:
            return 0.0 if self._asked else time.monotonic() - self._since

    def close(self) -> None:
        """Say nothing more; the process ends when it has answered."""
        with suppress(OSError), socket.socket(fileno=os.dup(self._connection.fileno())) as end:
            end.shutdown(socket.SHUT_WR)

    def _listen(self) -> None:
        try:
            while True:
                error, told = self._connection.recv()
                with self._lock:
                    heard, _ = self._asked.popleft()
                    self._since = time.monotonic()
                if error is None:
                    heard.set_result(told)
                else:
                    heard.set_exception(error)
        except (EOFError, OSError):
            pass
        except Exception:  # something that cannot be read: who knows what comes next
            logger.exception("the guard's process sent something that cannot be read")
        finally:
            self._break()

    def _break(self) -> None:
        """Tell all who wait; the process ends, if it did not yet."""
        with self._lock:
            self._broken, left = True, list(self._asked)
            self._asked.clear()
        for heard, _ in left:
            heard.set_exception(_lost())
        self.close()


def _lost() -> GuardLostError:
    return GuardLostError("the guard's process ended, and another one is being started; ask again in a few seconds")
