"""Images a second over HTTP beside images a second of the same runtime in process."""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.distances.timing import rotated
from benchmarks.reporting import Bar, aligned, percent
from benchmarks.serving_load.clients import Client, press
from benchmarks.serving_load.figures import Spread, failures_in_words, spread_of
from benchmarks.serving_load.machine import Others
from benchmarks.serving_load.pressing import Order
from benchmarks.serving_load.requests import write_requests
from benchmarks.serving_load.server import Server, metric
from benchmarks.serving_load.subjects import BATCH, Subject, in_process

__all__ = ["SIZES", "Burst", "Throughput", "bars_for", "measure_throughput", "throughput_lines"]

SIZES: Final = (1, 8, 64)
LEAST: Final = 0.9
_WAITING: Final = 3 * BATCH  # images that clients wait for: one batch is computed, one is full, one comes
_FILES: Final = 64


@dataclass(frozen=True, slots=True)
class Burst:
    """One round of one size.

    Attributes:
        rate: images a second over HTTP.
        in_process: images a second of the runtime in process, just before.
        batch: images in a batch that was formed, on average.
        client_share: of one core, that the clients took.
        server_share: of one core, that the server took.
        others_share: of one core, that everything else on the machine took.
        failures: requests without an answer, by what came instead.
    """

    rate: float
    in_process: float
    batch: float
    client_share: float
    server_share: float
    others_share: float
    failures: dict[str, int]


@dataclass(frozen=True, slots=True)
class Throughput:
    """All rounds of one size of requests.

    Attributes:
        size: images in a request.
        clients: that wait at the same time.
        client: who asks.
        bursts: one for each round.
    """

    size: int
    clients: int
    client: Client
    bursts: tuple[Burst, ...]

    @property
    def ratio(self) -> Spread:
        """Of HTTP to in process."""
        return spread_of([burst.rate / burst.in_process for burst in self.bursts])

    @property
    def failures(self) -> Counter[str]:
        """Requests without an answer in all rounds, by what came instead."""
        return sum((Counter(burst.failures) for burst in self.bursts), Counter())

    @property
    def rate(self) -> float:
        """Images a second over HTTP, the median."""
        return statistics.median(burst.rate for burst in self.bursts)


def measure_throughput(
    subject: Subject, server: Server, folder: Path, client: Client, rounds: int, seconds: float
) -> list[Throughput]:
    """Press the server with each size in turn, and the runtime in process between them.

    Args:
        subject: the guard.
        server: of the same guard, running.
        folder: for the requests.
        client: who asks.
        rounds: of all sizes.
        seconds: for each measurement.
    """
    images = subject.images.numpy()
    files = {size: [str(path) for path in write_requests(folder, images, size, _FILES)] for size in SIZES}
    bursts: dict[int, list[Burst]] = {size: [] for size in SIZES}
    press(Order(server.port, tuple(files[1]), 1.0, _clients(1)), client)  # warms up
    for number in range(rounds):
        for size in rotated(SIZES, number):
            bare = in_process_rate(subject, seconds)
            order = Order(server.port, tuple(files[size]), seconds, _clients(size))
            bursts[size].append(_burst(server, order, client, size, bare))
    return [Throughput(size, _clients(size), client, tuple(bursts[size])) for size in SIZES]


def in_process_rate(subject: Subject, seconds: float) -> float:
    """Images a second of the runtime, called with batches of 64 one after the other."""
    batches = subject.batches()
    with in_process(subject) as runtime:
        for batch in batches[:2]:
            runtime(batch)
        return rate_of(lambda number: runtime(batches[number % len(batches)]), seconds)


def rate_of(ask: Callable[[int], object], seconds: float) -> float:
    """Images a second, when batches are asked one after the other for so long."""
    start, count = time.perf_counter(), 0
    while (took := time.perf_counter() - start) < seconds or not count:
        ask(count)
        count += 1
    return count * BATCH / took


def _clients(size: int) -> int:
    return max(4, _WAITING // size)


def _burst(server: Server, order: Order, client: Client, size: int, bare: float) -> Burst:
    before, others = server.metrics(), Others(server.cpu_seconds)
    cpu, start = server.cpu_seconds(), time.perf_counter()
    pressed = press(order, client)
    took, elsewhere = time.perf_counter() - start, others.cores()
    used, after = server.cpu_seconds() - cpu, server.metrics()

    def grown(name: str) -> float:
        return metric(after, f"deepfailguard_batch_images_{name}") - metric(
            before, f"deepfailguard_batch_images_{name}"
        )

    return Burst(
        rate=pressed.requests * size / pressed.seconds,
        in_process=bare,
        batch=grown("sum") / max(grown("count"), 1.0),
        client_share=pressed.cpu_seconds / took,
        server_share=used / took,
        others_share=max(0.0, elsewhere - pressed.cpu_seconds / took),
        failures=pressed.failures,
    )


def throughput_lines(measured: Sequence[Throughput]) -> list[str]:
    """A table of all sizes."""
    head = (
        "images",
        "clients",
        "client",
        "images/s",
        "in process",
        "ratio",
        "batch",
        "client %",
        "server %",
        "others %",
        "failed",
    )
    rows = [
        (
            str(each.size),
            str(each.clients),
            each.client,
            f"{each.rate:.0f}",
            f"{statistics.median(burst.in_process for burst in each.bursts):.0f}",
            str(each.ratio),
            f"{statistics.median(burst.batch for burst in each.bursts):.1f}",
            percent(statistics.median(burst.client_share for burst in each.bursts), 0),
            percent(statistics.median(burst.server_share for burst in each.bursts), 0),
            percent(statistics.median(burst.others_share for burst in each.bursts), 0),
            str(each.failures.total()),
        )
        for each in measured
    ]
    return [
        "shares of one core; clients, server and everything else share the machine",
        *aligned([head, *rows], left=(2,)),
    ]


def bars_for(measured: Sequence[Throughput]) -> list[Bar]:
    """At least 90 % of the runtime in process, and an answer to every request."""
    bars = []
    for each in measured:
        subject = f"requests of {each.size}"
        bars.append(Bar(subject, "images/s over HTTP / in process", each.ratio.median, LEAST, True, str(each.ratio)))
        bars.append(
            Bar(subject, "requests without an answer", each.failures.total(), 0, note=failures_in_words(each.failures))
        )
    return bars
