"""The worker processes of one run: started when there is a unit for them, replaced when they die."""

import pickle
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection, get_context
from multiprocessing.context import SpawnProcess

from deepfailguard.errors import ConfigurationError
from deepfailguard.pipeline.launching.schedule import Schedule
from deepfailguard.pipeline.launching.serving_process import Briefing, serve
from deepfailguard.pipeline.launching.work import Unit

__all__ = ["Crew", "Report"]

_SECONDS_TO_END = 30.0  # for a chunk's last step and a shard; afterwards a worker is killed
_UNGUARDED = (
    ' before its first answer; a likely reason: the program that was started lacks `if __name__ == "__main__":` '
    "around what it does, and worker processes import it (what the worker wrote above says more)"
)


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker, or its death, says about a unit.

    Attributes:
        unit: that it had.
        error: what went wrong; None for nothing.
    """

    unit: Unit
    error: str | None


@dataclass(slots=True)
class _Worker:
    process: SpawnProcess
    line: "connection.Connection[Unit, str | None]"
    unit: Unit | None = None
    loaded: int | None = None
    answered: bool = False

    def take(self, unit: Unit) -> None:
        self.unit, self.loaded = unit, unit.job
        with suppress(OSError):  # it is dead already: `report` will say so
            self.line.send(unit)

    def report(self) -> tuple[Report, bool]:
        """The report on its unit, and whether it lives on."""
        assert self.unit is not None
        unit, self.unit = self.unit, None
        try:
            error = self.line.recv()
        except (EOFError, OSError):
            self.process.join(_SECONDS_TO_END)
            return Report(unit, f"its worker process {_ending(self.process.exitcode, self.answered)}"), False
        self.answered = True
        return Report(unit, error), error is None

    def stop(self) -> None:
        self.line.close()  # ends one that waits
        if self.unit is not None:
            self.process.terminate()  # it writes the chunks that it has finished

    def join(self) -> None:
        self.process.join(_SECONDS_TO_END)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


class Crew:
    """Worker processes, each with a place of its own.

    Args:
        size: how many there are at most (>= 1).
        brief: tells what the worker of a place must know.
    """

    def __init__(self, size: int, brief: Callable[[int], Briefing]) -> None:
        self.size = size
        self.brief = brief
        self._workers: dict[int, _Worker] = {}

    def hand_out(self, schedule: Schedule) -> None:
        """Give each idle worker a unit; start workers for units that are left over."""
        for place in range(self.size):
            worker = self._workers.get(place)
            if worker is not None and worker.unit is not None:
                continue
            unit = schedule.next(worker.loaded if worker is not None else None)
            if unit is None:
                continue
            if worker is None:
                worker = self._workers[place] = _start(self.brief(place))
            worker.take(unit)

    def wait(self) -> Iterator[Report]:
        """Wait until workers report or die."""
        busy = {worker.line: place for place, worker in self._workers.items() if worker.unit is not None}
        for line in connection.wait(list(busy)):
            place = next(place for other, place in busy.items() if other is line)
            report, alive = self._workers[place].report()
            if not alive:
                gone = self._workers.pop(place)
                gone.stop()
                gone.join()
            yield report

    def close(self) -> None:
        """End all workers; what they have finished is kept."""
        for worker in self._workers.values():
            worker.stop()  # all of them before the first is waited for
        while self._workers:
            self._workers.popitem()[1].join()


def _start(briefing: Briefing) -> _Worker:
    context = get_context("spawn")  # a fork would inherit threads and a CUDA context, and hang
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, briefing), daemon=True)
    try:
        with _deaf_to_interrupts():
            process.start()
    # What pickle raises differs from type to type.
    except (pickle.PicklingError, AttributeError, TypeError, ValueError) as error:
        ours.close()
        raise ConfigurationError(
            f"a distance estimator cannot be sent to another process: {error}; "
            "define its class at the top of a module, or use launcher=inline"
        ) from error
    finally:
        theirs.close()  # so that the line breaks when the worker dies
    return _Worker(process, ours)


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    # A terminal sends Ctrl-C to the workers too. They inherit this mask; the launcher ends them in good order.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ending(code: int | None, answered: bool) -> str:
    if code is None:
        return "no longer answered"
    if code < 0:
        hint = " (out of memory, perhaps)" if -code == signal.SIGKILL else ""
        return f"was ended by {signal.Signals(-code).name}{hint}"
    hint = "" if answered or code != 1 else _UNGUARDED
    return f"ended with exit code {code}{hint}"
