"""How long single images take from when they are due, at 70 % of what the server can do."""

import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np

from benchmarks.reporting import Bar, aligned
from benchmarks.serving_load.clients import press
from benchmarks.serving_load.figures import Spread, failures_in_words, spread_of
from benchmarks.serving_load.machine import Others
from benchmarks.serving_load.pressing import Order, Pressed
from benchmarks.serving_load.requests import write_requests
from benchmarks.serving_load.server import Server, metric
from benchmarks.serving_load.subjects import BATCH, Subject, in_process

__all__ = ["SHARE", "Latency", "Wave", "bars_for", "latency_lines", "measure_latency"]

Arrivals = Literal["even", "random"]

SHARE: Final = 0.7
MOST: Final = 2.0
ARRIVALS: Final[tuple[Arrivals, ...]] = ("even", "random")
_FILES: Final = 64
_TIMED: Final = 15  # batches


@dataclass(frozen=True, slots=True)
class Wave:
    """One round. All times are seconds.

    Attributes:
        p50: half of the answers came sooner after they were due.
        p95: of them, 95 %.
        p99: of them, 99 %.
        late: by how much the client sent later than it should at most, but for 1 %; a part of the times above.
        model: that the runtime in process takes for a batch of 64.
        small: that it takes for a batch of the size that was formed on average.
        batch: that size.
        others: cores that everything but server and clients kept busy meanwhile.
        requests: that were answered.
        failures: that were not, by what came instead.
    """

    p50: float
    p95: float
    p99: float
    late: float
    model: float
    small: float
    batch: float
    others: float
    requests: int
    failures: dict[str, int]


@dataclass(frozen=True, slots=True)
class Latency:
    """All rounds of one kind of arrivals.

    Attributes:
        arrivals: whether requests come evenly, or at random times (a Poisson process).
        rate: requests a second.
        waves: one for each round.
    """

    arrivals: Arrivals
    rate: float
    waves: tuple[Wave, ...]

    @property
    def failures(self) -> Counter[str]:
        """Requests without an answer in all rounds, by what came instead."""
        return sum((Counter(wave.failures) for wave in self.waves), Counter())

    def ratio(self, quantile: Literal["p50", "p95", "p99"], model: Literal["model", "small"] = "model") -> Spread:
        """Of a quantile to a model time."""
        return spread_of([getattr(wave, quantile) / getattr(wave, model) for wave in self.waves])


def measure_latency(
    subject: Subject, server: Server, folder: Path, capacity: float, rounds: int, seconds: float
) -> list[Latency]:
    """Send single images at a rate that does not wait for answers; time the runtime in process between.

    Latency counts from when a request was due, not from when it could be sent: a server that stalls must pay for
    those that could not be sent meanwhile.

    Args:
        subject: the guard.
        server: of the same guard, running.
        folder: for the requests.
        capacity: images a second that the server can answer, asked one by one.
        rounds: of each kind of arrivals.
        seconds: for each.
    """
    files = tuple(str(path) for path in write_requests(folder, subject.images.numpy(), 1, _FILES))
    waves: dict[Arrivals, list[Wave]] = {arrivals: [] for arrivals in ARRIVALS}
    for number in range(rounds):
        for arrivals in ARRIVALS:
            random = arrivals == "random"
            order = Order(server.port, files, seconds, rate=SHARE * capacity, poisson=random, seed=number)
            before, others = server.metrics(), Others(server.cpu_seconds)
            pressed = press(order)
            elsewhere = max(0.0, others.cores() - pressed.cpu_seconds / seconds)
            waves[arrivals].append(_wave(subject, pressed, _batch(before, server.metrics()), elsewhere))
    return [Latency(arrivals, SHARE * capacity, tuple(waves[arrivals])) for arrivals in ARRIVALS]


def seconds_for(subject: Subject, sizes: Sequence[int]) -> dict[int, float]:
    """Median seconds of the runtime in process for batches of some sizes, which take turns."""
    batches = {size: subject.batches(size) for size in sizes}
    took: dict[int, list[float]] = {size: [] for size in sizes}
    with in_process(subject) as runtime:
        for number in range(-1, _TIMED):  # the first one warms up
            for size, own in batches.items():
                start = time.perf_counter()
                runtime(own[number % len(own)])
                took[size] += [time.perf_counter() - start] if number >= 0 else []
    return {size: statistics.median(each) for size, each in took.items()}


def _batch(before: dict[str, float], after: dict[str, float]) -> float:
    """Images in a batch, on average."""
    images, batches = (
        metric(after, f"deepfailguard_batch_images_{name}") - metric(before, f"deepfailguard_batch_images_{name}")
        for name in ("sum", "count")
    )
    return images / max(batches, 1.0)


def _wave(subject: Subject, pressed: Pressed, batch: float, others: float) -> Wave:
    small = min(max(round(batch), 1), BATCH)
    model = seconds_for(subject, sorted({small, BATCH}))
    p50, p95, p99 = (float(each) for each in np.quantile(pressed.latencies or [np.nan], [0.5, 0.95, 0.99]))
    return Wave(
        p50=p50,
        p95=p95,
        p99=p99,
        late=float(np.quantile(pressed.late or [np.nan], 0.99)),
        model=model[BATCH],
        small=model[small],
        batch=batch,
        others=others,
        requests=pressed.requests,
        failures=pressed.failures,
    )


def latency_lines(measured: Sequence[Latency]) -> list[str]:
    """A table of both kinds of arrivals."""
    head = (
        "arrivals",
        "req/s",
        "p50 ms",
        "p95 ms",
        "p99 ms",
        "sent late",
        f"model ms ({BATCH})",
        "batch",
        "its ms",
        "others %",
    )
    more = ("p50 / model", "p95 / model", "p99 / model", "p99 / its model", "requests", "failed")
    return [
        "from when a request was due; model: the runtime in process, for 64 images and for the mean batch",
        *aligned([(*head, *more), *map(_row, measured)]),
    ]


def _row(each: Latency) -> tuple[str, ...]:
    def middle(name: str, factor: float = 1e3) -> str:
        return f"{factor * statistics.median(getattr(wave, name) for wave in each.waves):.1f}"

    times = [middle(name) for name in ("p50", "p95", "p99", "late", "model")]
    ratios = [str(each.ratio("p50")), str(each.ratio("p95")), str(each.ratio("p99")), str(each.ratio("p99", "small"))]
    counts = [str(sum(wave.requests for wave in each.waves)), str(each.failures.total())]
    return (
        each.arrivals,
        f"{each.rate:.0f}",
        *times,
        middle("batch", 1.0),
        middle("small"),
        middle("others", 100.0),
        *ratios,
        *counts,
    )


def bars_for(measured: Sequence[Latency]) -> list[Bar]:
    """At most twice the model time for even arrivals, and an answer to every request; random ones for information."""
    bars = []
    for each in measured:
        subject, ratio = f"{each.arrivals} arrivals", each.ratio("p99")
        if each.arrivals == "even":
            bars.append(Bar(subject, "p99 / model time at 70 %", ratio.median, MOST, note=str(ratio)))
        failed = each.failures
        bars.append(Bar(subject, "requests without an answer", failed.total(), 0, note=failures_in_words(failed)))
    return bars
