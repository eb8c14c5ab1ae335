"""Clients in a process of their own: all that the server can take, or so many requests a second.

    python -m benchmarks.serving_load.pressing < task.json

Reads an `Order` and prints a `Pressed`, both as JSON. It imports as little as `connections`.
"""

import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.serving_load.connections import Connections, new_loop

__all__ = ["Order", "Pressed", "Presser", "due_times"]

_AHEAD: Final = 0.2  # seconds from the start to the first request that is due
_SECONDS_TO_END: Final = 30.0


@dataclass(frozen=True, slots=True)
class Order:
    """What clients shall do.

    Attributes:
        port: of the server.
        files: with a request each, which are sent in turn.
        seconds: that it shall take.
        clients: that each wait for an answer before they ask again; used without a rate.
        rate: requests a second, whatever becomes of those before; None to press as `clients` do.
        poisson: whether requests come at random times, at this rate on average; else evenly.
        seed: of these times.
    """

    port: int
    files: tuple[str, ...]
    seconds: float
    clients: int = 1
    rate: float | None = None
    poisson: bool = False
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Pressed:
    """What came of it.

    Attributes:
        requests: that were answered with 200 in time.
        seconds: from the first one on.
        cpu_seconds: that the clients took.
        failures: other statuses, and errors, with their counts.
        latencies: seconds from when each request was due to its answer, if they had a rate.
        late: by how much each was sent after it was due, in seconds.
    """

    requests: int
    seconds: float
    cpu_seconds: float
    failures: dict[str, int] = field(default_factory=dict)
    latencies: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)


def due_times(order: Order) -> Iterator[float]:
    """When each request is due, in seconds from the start.

    >>> list(due_times(Order(0, (), 1.0, rate=4.0)))
    [0.0, 0.25, 0.5, 0.75]
    """
    rate, draw, due, number = order.rate or 1.0, random.Random(order.seed), 0.0, 0
    while due < order.seconds:
        yield due
        number += 1
        due = due + draw.expovariate(rate) if order.poisson else number / rate


class Presser:
    """Carries out one order.

    Args:
        order: what to do.
        requests: as bytes, sent in turn.
    """

    def __init__(self, order: Order, requests: Sequence[bytes]) -> None:
        self.order = order
        self.requests = requests
        self.connections = Connections(order.port)
        self.answered: list[float] = []
        self.latencies: list[float] = []
        self.late: list[float] = []
        self.failures: Counter[str] = Counter()
        self._turn = 0

    async def press(self) -> Pressed:
        """Do it."""
        cpu, start = time.process_time(), time.perf_counter()
        async with self.connections:
            if self.order.rate is None:
                await asyncio.gather(*(self._client(start + self.order.seconds) for _ in range(self.order.clients)))
                seconds = self.order.seconds
            else:
                await self._on_time(start + _AHEAD)
                seconds = time.perf_counter() - start - _AHEAD
        used = time.process_time() - cpu
        in_time = sum(when <= start + self.order.seconds for when in self.answered)
        count = in_time if self.order.rate is None else len(self.answered)
        return Pressed(count, seconds, used, dict(self.failures), self.latencies, self.late)

    async def _client(self, end: float) -> None:
        while time.perf_counter() < end:
            await self._ask(None)

    async def _on_time(self, start: float) -> None:
        """Send each request when it is due, also while others wait."""
        tasks = []
        for due in due_times(self.order):
            ahead = start + due - time.perf_counter()
            if ahead > 0:
                await asyncio.sleep(ahead)
            tasks.append(asyncio.create_task(self._ask(start + due)))
        _, left = await asyncio.wait(tasks, timeout=_SECONDS_TO_END)
        for task in left:
            task.cancel()
            self.failures[f"no answer within {_SECONDS_TO_END:g} s"] += 1

    async def _ask(self, due: float | None) -> None:
        request = self.requests[self._turn % len(self.requests)]
        self._turn += 1
        try:
            connection = await self.connections.take()
            sent = time.perf_counter()
            reply = await connection.ask(request)
            self.connections.give(connection)
        except OSError as error:
            self.failures[f"{type(error).__name__}: {error}"] += 1
            await asyncio.sleep(0.01)  # a server that refuses connections must not be asked without a pause
            return
        now = time.perf_counter()
        if reply.status != 200:
            self.failures[f"{reply.status}: {reply.body[:120].decode(errors='replace')}"] += 1
            return
        self.answered.append(now)
        if due is not None:
            self.latencies.append(now - due)
            self.late.append(sent - due)


def main() -> None:
    """Carry out the order that comes on standard input."""
    told = json.load(sys.stdin)
    order = Order(**told | {"files": tuple(told["files"])})
    requests = [Path(file).read_bytes() for file in order.files]
    with asyncio.Runner(loop_factory=new_loop) as runner:
        pressed = runner.run(Presser(order, requests).press())
    json.dump(asdict(pressed), sys.stdout)


if __name__ == "__main__":
    main()
