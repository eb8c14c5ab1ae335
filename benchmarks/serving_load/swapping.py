"""Versions are exchanged and set aside while clients ask without a pause."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.reporting import Bar, aligned
from benchmarks.serving_load.answers import Answer, Columns, Expected, answer_of
from benchmarks.serving_load.connections import Connections, new_loop
from benchmarks.serving_load.requests import ANSWERS, as_binary
from benchmarks.serving_load.server import Server
from benchmarks.serving_load.subjects import Subject

__all__ = ["Operator", "Period", "Swapping", "bars_for", "swap_lines", "swap_under_load"]

_CLIENTS: Final = 6
_LARGEST: Final = 32
_QUIET: Final = 12  # answers to requests that are sent while everything stays as it is, each time
_GLANCE: Final = 0.05
_SECONDS_TO_SERVE: Final = 60.0
_SECONDS_TO_ANSWER: Final = 60.0
_TIMEOUT: Final = 60.0
_FEW: Final = 5


@dataclass(frozen=True, slots=True)
class Period:
    """A time in which nobody changed anything.

    Attributes:
        columns: the versions that must answer.
        start: when it had begun for sure, by `time.perf_counter`.
        end: when it had not ended yet for sure.
    """

    columns: Columns
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Told:
    """An answer, when its request was sent, and when it came."""

    answer: Answer
    sent: float
    came: float


@dataclass(slots=True)
class Swapping:
    """What came of it.

    Attributes:
        swaps: that were made.
        quarantines: versions that were set aside and released again.
        refused: changes that the server refused, by what it said.
        requests: that clients made.
        failed: of them, by what came instead of an answer.
        wrong: answers that are not those of the guard of the versions that gave them, or whose degraded flag does not
            fit them, by what is wrong.
        stale: answers in a quiet time by other versions than those that served then.
        whole: answers in quiet times while all served.
        apart: answers in quiet times while one was set aside.
        recoveries: seconds from each release to when the version served again.
    """

    swaps: int = 0
    quarantines: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    stale: int = 0
    whole: int = 0
    apart: int = 0
    recoveries: list[float] = field(default_factory=list)


class Operator:
    """Exchanges two versions and sets others aside, in turn.

    Args:
        server: whose operator this is.
        names: of the versions, in order; the last one runs as a shadow at first.
        told: is written to.
        answers: that clients got so far.

    Attributes:
        periods: in which everything stayed as it was.
    """

    def __init__(self, server: Server, names: Sequence[str], told: Swapping, answers: Sequence[Told]) -> None:
        self.server = server
        self.names = names
        self.told = told
        self.answers = answers
        self.periods: list[Period] = []
        self._serving, self._shadow = len(names) - 2, len(names) - 1

    @property
    def base(self) -> Columns:
        """The versions that should serve now."""
        return tuple(column for column in range(len(self.names)) if column != self._shadow)

    async def work(self, turns: int) -> None:
        """Swap, set aside and release so many times."""
        await self._quiet(self.base)
        for number in range(turns):
            await self._swap()
            await self._set_aside(number % (len(self.names) - 2))

    async def _swap(self) -> None:
        leaving, entering = self.names[self._serving], self.names[self._shadow]
        # what the gate says of these two is not what is measured
        asked = {"leaving": leaving, "entering": entering, "force": True}
        if await self._change("/versions/swap", asked):
            self.told.swaps += 1
            self._serving, self._shadow = self._shadow, self._serving
        await self._quiet(self.base)

    async def _set_aside(self, column: int) -> None:
        name = self.names[column]
        if not await self._change(f"/versions/{name}/quarantine", {"reason": "the benchmark wants it"}):
            return
        await self._quiet(tuple(other for other in self.base if other != column))
        if not await self._change(f"/versions/{name}/release", {}):
            return
        start = perf_counter()
        while not await asyncio.to_thread(self._serves, name):
            if perf_counter() > start + _SECONDS_TO_SERVE:
                self.told.refused[f"{name} did not serve again within {_SECONDS_TO_SERVE:g} s"] += 1
                return
            await asyncio.sleep(_GLANCE)
        self.told.recoveries.append(perf_counter() - start)
        self.told.quarantines += 1
        await self._quiet(self.base)

    def _serves(self, name: str) -> bool:
        versions = self.server.get("/health")["versions"]
        return any(version["name"] == name and version["state"] == "serving" for version in versions)

    async def _change(self, path: str, content: dict[str, Any]) -> bool:
        status, body = await asyncio.to_thread(self.server.change, path, content)
        if status != 200:
            self.told.refused[f"{path}: {status}: {body}"] += 1
        return status == 200

    async def _quiet(self, columns: Columns) -> None:
        """Change nothing until clients have got some answers to what they asked since."""
        start, before = perf_counter(), len(self.answers)
        while sum(each.sent >= start for each in self.answers[before:]) < _QUIET:
            if perf_counter() > start + _SECONDS_TO_ANSWER:
                break
            await asyncio.sleep(_GLANCE)
        self.periods.append(Period(columns, start, perf_counter()))


class Clients:
    """Ask without a pause until they are told to stop.

    Args:
        images: (L, C, H, W) float32.
        port: of the server.
        told: is written to.
        check: tells what is wrong with an answer to the images at some rows.
    """

    def __init__(
        self, images: NDArray[Any], port: int, told: Swapping, check: Callable[[NDArray[Any], Answer], str]
    ) -> None:
        self.images = images
        self.told = told
        self.check = check
        self.connections = Connections(port)
        self.answers: list[Told] = []
        self.stop = False

    async def ask(self, number: int) -> None:
        """As one client."""
        draw = random.Random(number)
        while not self.stop:
            rows = np.array([draw.randrange(len(self.images)) for _ in range(draw.randint(1, _LARGEST))])
            request = as_binary(self.images[rows], ANSWERS)
            self.told.requests += 1
            sent = perf_counter()
            try:
                async with asyncio.timeout(_TIMEOUT):
                    reply = await self.connections.ask(request)
            except (OSError, TimeoutError) as error:
                self.told.failed[f"{type(error).__name__}: {error}"] += 1
                continue
            if reply.status != 200:
                self.told.failed[f"{reply.status}: {reply.body[:120]!r}"] += 1
                continue
            answer = answer_of(reply)
            self.answers.append(Told(answer, sent, perf_counter()))
            problem = self.check(rows, answer)
            if problem:
                self.told.wrong[problem] += 1


def swap_under_load(subject: Subject, server: Server, turns: int) -> Swapping:
    """Exchange and set aside versions of a server under load.

    Args:
        subject: the guard.
        server: of the same guard, running, whose last version is a shadow.
        turns: of a swap, and of setting a version aside and releasing it.
    """
    told = Swapping()
    everybody = tuple(range(len(subject.names)))
    expected = Expected(subject.guard, subject.images.numpy(), [everybody[:-1], (*everybody[:-2], everybody[-1])])
    for columns in expected.whole:  # before anybody waits for answers
        for left in (columns, *(tuple(each for each in columns if each != gone) for gone in columns)):
            expected.of(left)
    clients = Clients(subject.images.numpy(), server.port, told, expected.problem)
    operator = Operator(server, subject.names, told, clients.answers)

    async def run() -> None:
        async with clients.connections:
            asking = [asyncio.create_task(clients.ask(number)) for number in range(_CLIENTS)]
            try:
                await operator.work(turns)
            finally:
                clients.stop = True
                await asyncio.gather(*asking)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(run())
    sort_out(told, clients.answers, operator.periods, expected.whole)
    return told


def sort_out(told: Swapping, answers: Sequence[Told], periods: Sequence[Period], whole: frozenset[Columns]) -> None:
    """Count the answers to requests that were sent and answered in a quiet time; the versions must be those of then."""
    for each in answers:
        for period in periods:
            if period.start <= each.sent and each.came <= period.end:
                told.stale += each.answer.columns != period.columns
                told.whole += period.columns in whole
                told.apart += period.columns not in whole


def swap_lines(told: Swapping) -> list[str]:
    """What was done, and what clients got."""
    head = ("swaps", "set aside", "refused", "requests", "failed", "wrong", "in quiet times", "degraded", "stale")
    counts = (told.swaps, told.quarantines, told.refused.total(), told.requests)
    more = (told.failed.total(), told.wrong.total(), told.whole + told.apart, told.apart, told.stale)
    troubles = [f"  {count} x {what}" for what, count in (told.refused + told.failed + told.wrong).most_common(_FEW)]
    slowest = f"{max(told.recoveries, default=float('nan')):.2f}"
    return [
        *aligned([(*head, "s to serve again, at most"), (*map(str, (*counts, *more)), slowest)]),
        *troubles,
    ]


def bars_for(told: Swapping, turns: int) -> list[Bar]:
    """No request failed, each answer right and marked right, and all that at work."""
    return [
        Bar("swap", "swaps under load", told.swaps, turns, at_least=True),
        Bar("swap", "versions set aside and released", told.quarantines, turns, at_least=True),
        Bar("swap", "failed requests", told.failed.total(), 0, note=f"of {told.requests}"),
        Bar("swap", "answers that are not those of their versions, or marked wrong", told.wrong.total(), 0),
        Bar("swap", "answers by other versions than those that served", told.stale, 0),
        Bar("swap", "answers while all served", told.whole, turns, at_least=True),
        Bar("swap", "answers while one was set aside", told.apart, turns, at_least=True),
    ]
