"""A version's process as its runtime sees it: it can be started once, asked, killed and ended."""

import os
import pickle
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import get_all_start_methods, get_context, resource_tracker, util
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Final

from deepfailguard.errors import ConfigurationError, VersionError, VersionLostError, WrongOutputError
from deepfailguard.runtime.runners.wire import Message, receive, send
from deepfailguard.runtime.runners.worker import Briefing, serve

__all__ = ["UNGUARDED", "Spawned", "deaf_to_interrupts"]

UNGUARDED: Final = (
    'the program that was started lacks `if __name__ == "__main__":` around what it does, and the processes of '
    "versions import it"
)
_SECONDS_TO_WRITE: Final = 10.0  # its cache, before it is ended
_SECONDS_TO_DIE: Final = 3.0  # for one that broke its line, or was killed
_IMPORTED_ANYWAY: Final = "deepfailguard.runtime.runtime"  # by the main module, which each process imports


class Spawned:
    """A process for a version, and the line to it.

    One thread launches it, asks it and ends it. Other threads may kill it, also while it is launched or asked.

    Args:
        briefing: what it must know.
    """

    def __init__(self, briefing: Briefing) -> None:
        self.briefing = briefing
        self._lock = threading.Lock()
        self._process: BaseProcess | None = None
        self._line: Connection | None = None
        self._at_exit: util.Finalize | None = None
        self._ready = False
        self._killed = ""  # why, as the end of a sentence

    @property
    def pid(self) -> int | None:
        """Its number; None if it does not run as far as anybody knows."""
        with self._lock:
            return None if self._process is None else self._process.pid

    def memory(self) -> int | None:
        """Bytes of memory that it occupies; None if it does not run, or nobody can tell."""
        pid = self.pid
        try:
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except (OSError, IndexError, ValueError):
            return None
        return pages * os.sysconf("SC_PAGE_SIZE") or None  # one that died and was not taken notice of has none

    def launch(self, seconds: float) -> Message:
        """Start it and wait until it has loaded its version; what it says then.

        Raises:
            ConfigurationError: something cannot be sent to it.
            VersionLostError: it died, was killed, or took longer than this.
            VersionError: no process can be started.
        """
        briefing = _packed(self.briefing)
        self._start()
        timer = threading.Timer(seconds, self.kill, [f"it had not loaded its version within {seconds:g} s"])
        timer.daemon = True
        timer.start()
        try:
            said = self._exchange(lambda line: line.send_bytes(briefing))
        finally:
            timer.cancel()
        self._ready = True
        return said

    def ask(self, message: Message) -> Message:
        """What it says to a message.

        Raises:
            VersionLostError: it died or was killed.
            WrongOutputError: it sent something that is no message; it does not run any more.
        """
        return self._exchange(lambda line: send(line, message))

    def kill(self, why: str) -> None:
        """End it at once, from any thread and whatever it does; who asks it is told why."""
        with self._lock:
            self._killed = self._killed or why
            if self._process is not None and self._line is not None:
                _kill(self._process)
                _hang_up(self._line)

    def end(self) -> None:
        """End it; before, it may write distances to its cache."""
        with self._lock:
            if self._line is not None:
                _hang_up(self._line)
        self._bury(0.0 if self.briefing.cache is None else _SECONDS_TO_WRITE)

    def _start(self) -> None:
        context = _context()
        try:
            ours, theirs = context.Pipe()
            # The line and no argument carries the briefing: a process that dies too early would block its sender.
            process = context.Process(target=serve, args=(theirs,), daemon=True, name=f"version {self.briefing.name}")
            try:
                with deaf_to_interrupts():
                    process.start()
            except BaseException:
                ours.close()
                raise
            finally:
                theirs.close()  # so that the line breaks when the process dies
        # No memory, no more files, a daemon that must not start any, a server that ended.
        except (OSError, AssertionError, RuntimeError, EOFError) as error:
            raise VersionError(
                f"no process for version {self.briefing.name!r} can be started: {type(error).__name__}: {error}"
            ) from error
        self._at_exit = util.Finalize(self, _kill, (process,), exitpriority=10)
        with self._lock:
            self._process, self._line = process, ours
        if self._killed:
            self.kill(self._killed)

    def _exchange(self, tell: Callable[[Connection], None]) -> Message:
        line = self._line
        if line is None:
            raise VersionLostError(f"version {self.briefing.name!r} does not run; start it")
        try:
            tell(line)
            return receive(line)
        except WrongOutputError:
            self.kill("what it sent was no message")
            self._bury()
            raise
        except Exception as error:  # the line broke, or there is no memory for what comes: out of step for good
            if not isinstance(error, EOFError | OSError):
                self.kill(f"what it sent could not be taken ({type(error).__name__}: {error})")
            raise VersionLostError(f"version {self.briefing.name!r} was lost: {self._bury()}") from error

    def _bury(self, seconds: float = _SECONDS_TO_DIE) -> str:
        """Wait so long for its end, then force it; how it ended."""
        process, line = self._process, self._line
        if process is None or line is None:
            return "its process does not run"
        until = time.monotonic() + seconds
        while process.is_alive() and time.monotonic() < until:
            time.sleep(0.002)
        if process.is_alive():
            self.kill("it had closed its line, or was to end, and went on")
        with self._lock:
            _kill(process)  # what it started is ended with it
            self._process = self._line = None
            line.close()
        process.join(_SECONDS_TO_DIE)
        if self._at_exit is not None:
            self._at_exit.cancel()
        return self._ending(process.exitcode)

    def _ending(self, code: int | None) -> str:
        if self._killed:
            return f"its process was ended: {self._killed}"
        if code is None:
            return "its process no longer answers, and does not even end when it is killed"
        if code < 0:
            hint = " (out of memory, perhaps)" if -code == signal.SIGKILL else ""
            return f"its process was ended by {_signal_name(-code)}{hint}"
        unguarded = code == 1 and not self._ready
        hint = f" before it answered; a likely reason: {UNGUARDED} (what it wrote above says more)" if unguarded else ""
        return f"its process ended with exit code {code}{hint}"


def _context() -> ForkServerContext | SpawnContext:
    """How processes are started: by a server that has imported torch and has one thread, in a hundredth of the time.

    A fork of this process would inherit its threads and its CUDA context, and hang.
    """
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload([serve.__module__, _IMPORTED_ANYWAY])
    return context


def _packed(briefing: Briefing) -> bytes:
    parts = {"source": briefing.source, "distance estimator": briefing.distance, "cache": briefing.cache}
    for what, part in parts.items():
        try:
            pickle.dumps(part)
        except Exception as error:  # what it raises differs from type to type
            raise ConfigurationError(
                f"the {what} of version {briefing.name!r} cannot be sent to another process: {type(error).__name__}: "
                f"{error}; define its classes at the top of a module, or run the version in this process"
            ) from error
    return pickle.dumps(briefing)  # not multiprocessing's own way, by which processes would share a model's memory


@contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """Processes that are started meanwhile do not hear the Ctrl-C that a terminal sends them too.

    They inherit the mask, and take care of themselves later.
    """
    resource_tracker.ensure_running()  # it would lift the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _kill(process: BaseProcess) -> None:
    """Kill it and what it started; it leads a session of its own from its first moments on.

    Where the server that started it has ended, multiprocessing believes that so has the process, and would do nothing.
    """
    if process.pid is not None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()


def _hang_up(line: Connection) -> None:
    """End the line for both sides at once, even where others have inherited it."""
    with socket.socket(fileno=os.dup(line.fileno())) as end, suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
