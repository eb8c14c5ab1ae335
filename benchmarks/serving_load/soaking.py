"""Tens of thousands of requests of all kinds, and what becomes of the server meanwhile."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.reporting import Bar, aligned
from benchmarks.serving_load.answers import Expected, answer_of, answer_to_picture
from benchmarks.serving_load.connections import Connections, Reply, new_loop
from benchmarks.serving_load.memory import Growth, Sample, growth_of
from benchmarks.serving_load.mischief import LEAVING, leave, malformed, spoilt
from benchmarks.serving_load.requests import ANSWERS, as_binary, as_json, as_picture
from benchmarks.serving_load.server import Server
from benchmarks.serving_load.subjects import Subject

__all__ = ["Soak", "Soaker", "bars_for", "memory_lines", "soak", "soak_lines"]

Kind = Literal["sound", "as JSON", "picture", "bad images", "malformed", "goes away", "looks at a page"]

_SHARES: Final[dict[Kind, float]] = {
    "sound": 0.74,
    "as JSON": 0.04,
    "picture": 0.03,
    "bad images": 0.07,
    "malformed": 0.06,
    "goes away": 0.05,
    "looks at a page": 0.01,
}
_SIZES: Final = (((1, 1), 0.6), ((2, 8), 0.3), ((9, 64), 0.08), ((65, 150), 0.02))  # ranges, and their shares
_PAGES: Final = ("/health", "/status", "/metrics", "/v2/models/guard", "/v2/health/ready")
_CLIENTS: Final = 12
_SAMPLES: Final = 400
_TIMEOUT: Final = 60.0
_GLANCE: Final = 0.05
_FEW: Final = 5
MOST_SLOPE, MOST_GROWTH = 1.0, 0.05  # MiB for 10,000 requests; of the memory when it was warm


@dataclass(slots=True)
class Soak:
    """What came of it.

    Attributes:
        isolation: where the versions ran.
        kinds: requests of each kind.
        images: in sound requests and in those with bad images.
        seconds: that it took.
        wrong: answers that differ from those in process, and answers to what should have been refused, by what is
            wrong.
        lost: requests whose clients waited and got nothing, by what they got instead.
        errors: answers of 500 and more, as the server counts them.
        degraded: answers without some version.
        farthest: by how much a failure probability differed from the one in process at most.
        samples: of the memory.
        ended_well: whether the server was ready afterwards, with nothing waiting, wrote no traceback, and ended with 0.
    """

    isolation: str
    kinds: Counter[str] = field(default_factory=Counter)
    images: int = 0
    seconds: float = 0.0
    wrong: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    errors: int = 0
    degraded: int = 0
    farthest: float = 0.0
    samples: list[Sample] = field(default_factory=list)
    ended_well: bool = False

    @property
    def requests(self) -> int:
        """How many there were."""
        return self.kinds.total()

    @property
    def growth(self) -> Growth:
        """Of the memory."""
        return growth_of(self.samples)


class Soaker:
    """Clients that ask for all sorts of things until there were enough.

    Args:
        images: (L, C, H, W) float32.
        expected: what must come out for these, and for the same once more as pictures of 256 greys.
        server: is asked.
        soak: is written to.
        seed: of all draws.
    """

    def __init__(self, images: NDArray[Any], expected: Expected, server: Server, soak: Soak, seed: int) -> None:
        self.images = images
        self.expected = expected
        self.server = server
        self.soak = soak
        self.draw = random.Random(seed)
        self.connections = Connections(server.port)
        self._malformed = malformed(images[:1])

    async def run(self, requests: int, seconds: float) -> None:
        """So many requests, for so long at most; the memory is looked at now and then."""
        end, every = time.monotonic() + seconds, max(1, requests // _SAMPLES)
        async with self.connections:
            clients = [asyncio.create_task(self._client(requests, end)) for _ in range(_CLIENTS)]
            while not all(client.done() for client in clients):
                if not self.soak.samples or self.soak.requests >= self.soak.samples[-1].requests + every:
                    self.soak.samples.append(Sample(self.soak.requests, self.server.memory()))
                await asyncio.sleep(_GLANCE)
            await asyncio.gather(*clients)

    async def _client(self, requests: int, end: float) -> None:
        kinds, shares = list(_SHARES), list(_SHARES.values())
        while self.soak.requests < requests and time.monotonic() < end:
            (kind,) = self.draw.choices(kinds, shares)
            self.soak.kinds[kind] += 1
            try:
                async with asyncio.timeout(_TIMEOUT):
                    await self._do(kind)
            except (OSError, TimeoutError) as error:
                self.soak.lost[f"{kind}: {type(error).__name__}: {error}"] += 1

    async def _do(self, kind: Kind) -> None:
        if kind == "malformed":
            await self._ask_wrongly()
        elif kind == "goes away":
            await leave(self.connections, as_binary(self._drawn()[0]), self.draw.choice(LEAVING))
        elif kind == "looks at a page":
            page = f"GET {self.draw.choice(_PAGES)} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
            self._refused(kind, 200, await self.connections.ask(page))
        elif kind == "picture":
            await self._ask_picture()
        else:
            await self._ask_images(kind)

    def _drawn(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Images and their rows."""
        ((low, high),) = self.draw.choices([size for size, _ in _SIZES], [share for _, share in _SIZES])
        count = self.draw.randint(low, high)
        rows = np.array([self.draw.randrange(len(self.images)) for _ in range(count)])
        return self.images[rows], rows

    async def _ask_images(self, kind: Kind) -> None:
        images, rows = self._drawn()
        if kind == "bad images":
            images, rows = spoilt(images, rows, self.draw)
        request = (as_json if kind == "as JSON" else as_binary)(images, ANSWERS)
        reply = await self.connections.ask(request)
        self.soak.images += len(rows)
        if not self._refused(kind, 200, reply):
            answer = answer_of(reply)
            self.soak.degraded += answer.degraded
            self._note(kind, self.expected.problem(rows, answer))

    async def _ask_picture(self) -> None:
        row = self.draw.randrange(len(self.images))
        reply = await self.connections.ask(as_picture(self.images[row]))
        if not self._refused("picture", 200, reply):
            answer = answer_to_picture(reply)
            self.soak.degraded += answer.degraded
            self._note("picture", self.expected.problem(np.array([len(self.images) + row]), answer))

    async def _ask_wrongly(self) -> None:
        chosen = self.draw.choice(self._malformed)
        self._refused(f"malformed, {chosen.name}", chosen.status, await self.connections.ask(chosen.request))

    def _refused(self, kind: str, status: int, reply: Reply) -> bool:
        """Whether another status came than should; it is noted then."""
        if reply.status != status:
            self._note(kind, f"status {reply.status} instead of {status}: {reply.body[:120]!r}")
        return reply.status != status

    def _note(self, kind: str, problem: str) -> None:
        if problem:
            self.soak.wrong[f"{kind}: {problem}"] += 1


def soak(subject: Subject, server: Server, isolation: str, requests: int, seconds: float, seed: int = 0) -> Soak:
    """Ask a server for all sorts of things.

    Args:
        subject: the guard.
        server: of the same guard, running; it is ended.
        isolation: where its versions run.
        requests: how many, if there is time for them.
        seconds: after which no more are made.
        seed: of what is asked.
    """
    told, images = Soak(isolation), subject.images.numpy()
    as_seen = np.rint(images * 255).astype(np.float32) / np.float32(255)
    expected = Expected(subject.guard, np.concatenate([images, as_seen]))
    start = time.monotonic()
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(Soaker(images, expected, server, told, seed).run(requests, seconds))
    told.seconds, told.farthest = time.monotonic() - start, expected.farthest
    told.errors = server_errors(server.metrics())
    at_rest = server.get("/health")["ready"] and server.metrics()["deepfailguard_queue_images"] == 0
    server.__exit__()
    told.ended_well = at_rest and server.status == 0 and "Traceback" not in server.log.read_text()
    return told


def server_errors(metrics: dict[str, float]) -> int:
    """Answers of 500 and more that the server counted."""
    counted = {name: value for name, value in metrics.items() if name.startswith("deepfailguard_request_seconds_count")}
    return round(sum(value for name, value in counted.items() if 'status="5' in name))


def soak_lines(measured: Sequence[Soak]) -> list[str]:
    """What was asked, and what went wrong."""
    kinds = list(_SHARES)
    head = ("versions", "requests", *kinds, "images", "seconds", "wrong", "lost", "5xx", "degraded", "farthest p")
    rows = [
        (
            each.isolation,
            *map(str, (each.requests, *(each.kinds[kind] for kind in kinds), each.images, round(each.seconds))),
            *map(str, (each.wrong.total(), each.lost.total(), each.errors, each.degraded)),
            f"{each.farthest:.1e}",
        )
        for each in measured
    ]
    troubles = [
        f"  {count} x {what}" for each in measured for what, count in (each.wrong + each.lost).most_common(_FEW)
    ]
    return [*aligned([head, *rows]), *troubles]


def memory_lines(measured: Sequence[Soak]) -> list[str]:
    """How the memory of the server and its processes grew, after the first fifth of the requests."""
    head = ("versions", "warm MiB", "largest", "grown by", "for 10,000 requests")
    rows = []
    for each in measured:
        grown = each.growth
        rows.append(
            (each.isolation, *(f"{size:.2f}" for size in (grown.warm, grown.largest, grown.total, grown.slope)))
        )
    return aligned([head, *rows])


def bars_for(measured: Sequence[Soak], wanted: Sequence[int]) -> list[Bar]:
    """Nothing lost, nothing wrong, no error, flat memory; `wanted` is how many requests there should be of each."""
    bars = []
    for each, requests in zip(measured, wanted, strict=True):
        subject, grown = f"versions {each.isolation}", each.growth
        share = f"{grown.total:.1f} MiB of {grown.warm:.0f}"
        bars += [
            Bar(subject, "requests", each.requests, requests, at_least=True),
            Bar(subject, "answers that are not those in process", each.wrong.total(), 0),
            Bar(subject, "requests without an answer", each.lost.total(), 0),
            Bar(subject, "answers of 5xx", each.errors, 0),
            Bar(subject, "ended as it should", float(each.ended_well), 1, at_least=True),
            Bar(subject, "MiB more for 10,000 requests", grown.slope, MOST_SLOPE),
            Bar(subject, "share by which memory grew", grown.total / grown.warm, MOST_GROWTH, note=share),
        ]
    return bars
