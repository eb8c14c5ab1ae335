"""What the guard and its runtime cost beside a plain loop over the same versions."""

import cProfile
import pstats
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from benchmarks.distances.timing import rotated
from benchmarks.reporting import Bar, aligned, percent
from benchmarks.serving_load.figures import Spread, spread_of
from benchmarks.serving_load.machine import Others
from benchmarks.serving_load.subjects import BATCH, Subject, wait_until_fitted
from deepfailguard.runtime.runtime import GuardRuntime
from deepfailguard.runtime.settings import Settings

__all__ = ["Cost", "Overhead", "bars_for", "cost_lines", "measure_overhead", "place_lines", "time_ways"]

LOOP: Final = "plain loop"
GUARD: Final = "guard"
RUNTIME: Final = "runtime"
UNWATCHED: Final = "runtime without watch"
MOST: Final = 1.03
_PLACES: Final = 24
_SETTINGS: Final = Settings(deadline=60.0)  # else the usual ones: full size takes longer on a busy machine
_PACKAGE: Final = "deepfailguard"

Way = Callable[[Tensor], Any]


@dataclass(frozen=True, slots=True)
class Cost:
    """What one way costs.

    Attributes:
        way: its name.
        milliseconds: the median for a batch.
        ratio: to the plain loop, round by round.
    """

    way: str
    milliseconds: float
    ratio: Spread


@dataclass(frozen=True, slots=True)
class Overhead:
    """What guarding costs for some versions.

    Attributes:
        subject: its name.
        versions: how many.
        costs: of all ways.
        others: cores that everything else on the machine kept busy meanwhile.
        places: where the calls of the guard's own functions spend their time: function and milliseconds a batch, with
            what it calls; empty if the bar was reached.
    """

    subject: str
    versions: int
    costs: tuple[Cost, ...]
    others: float
    places: dict[str, tuple[tuple[str, float], ...]]


def measure_overhead(subject: Subject, rounds: int, profile: int = 10) -> Overhead:
    """Time all ways in turn, on batches of 64 without distances.

    Args:
        subject: the guard.
        rounds: in each of which every way answers one batch.
        profile: batches that are profiled where the bar is missed.
    """
    with _ways(subject) as ways:
        others = Others(time.process_time)
        seconds = time_ways(ways, subject.batches(), rounds)
        elsewhere = others.cores()
        costs = tuple(_cost(way, seconds[way], seconds[LOOP]) for way in ways)
        missed = [cost.way for cost in costs if cost.ratio.median > MOST]
        places = {way: places_of(ways[way], subject.batches(), profile) for way in missed if way in (GUARD, RUNTIME)}
    return Overhead(subject.name, len(subject.names), costs, elsewhere, places)


def time_ways(ways: Mapping[str, Way], batches: Sequence[Tensor], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way in each round, in an order that rotates; all answer the same batch in a round."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(-2, rounds):  # the first two only warm up
        batch = batches[number % len(batches)]
        for name in rotated(list(ways), max(number, 0)):
            start = time.perf_counter()
            ways[name](batch)
            took = time.perf_counter() - start
            seconds[name] += [took] if number >= 0 else []
    return seconds


@contextmanager
def _ways(subject: Subject) -> Iterator[dict[str, Way]]:
    """All ways to ask the versions; each has modules of its own, as it has in use."""
    guard, models = subject.guard, [version.model for version in subject.guard.versions]

    @torch.no_grad()
    def loop(batch: Tensor) -> list[Tensor]:
        return [model(batch).softmax(1) for model in models]

    with ExitStack() as stack:
        states = [Path(stack.enter_context(tempfile.TemporaryDirectory()), "state") for _ in range(2)]
        watched = stack.enter_context(GuardRuntime(guard, settings=_SETTINGS, state=states[0]))
        wait_until_fitted(watched)
        shutil.copytree(states[0] / "derived", states[1] / "derived")  # fitting them takes minutes at full size
        unwatched = stack.enter_context(GuardRuntime(guard, settings=replace(_SETTINGS, watch=False), state=states[1]))
        wait_until_fitted(unwatched)
        yield {LOOP: loop, GUARD: guard, RUNTIME: watched, UNWATCHED: unwatched}


def _cost(way: str, seconds: Sequence[float], loop: Sequence[float]) -> Cost:
    ratios = [own / other for own, other in zip(seconds, loop, strict=True)]
    return Cost(way, 1e3 * statistics.median(seconds), spread_of(ratios))


def places_of(way: Way, batches: Sequence[Tensor], count: int) -> tuple[tuple[str, float], ...]:
    """Functions of deepfailguard in which the calling thread spends most time: name and milliseconds a batch.

    A profile makes small functions look dearer than they are; what a runtime's versions compute is another thread's,
    and shows as waiting.
    """
    profile = cProfile.Profile()
    for number in range(count):
        profile.runcall(way, batches[number % len(batches)])
    told = []
    for (file, _, name), (_, _, _, cumulative, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        place = Path(file)
        if _PACKAGE in place.parts:
            told.append((f"{place.parent.name}/{place.stem}.{name}", 1e3 * cumulative / count))
    return tuple(sorted(told, key=lambda each: -each[1])[:_PLACES])


def cost_lines(measured: Sequence[Overhead]) -> list[str]:
    """A table of all ways on all subjects."""
    rows = [
        (
            each.subject,
            str(each.versions),
            cost.way,
            f"{cost.milliseconds:.2f}",
            str(cost.ratio),
            str(cost.ratio.rounds),
            percent(each.others, 0),
        )
        for each in measured
        for cost in each.costs
    ]
    head = ("versions of", "versions", "way", f"ms per {BATCH}", "ratio to the plain loop", "rounds", "others %")
    return aligned([head, *rows], left=(0, 2))


def place_lines(measured: Sequence[Overhead]) -> list[str]:
    """Where the time goes, where the bar was missed."""
    lines: list[str] = []
    for each in measured:
        for way, places in each.places.items():
            lines += ["", f"{each.subject}, {way}: where the calling thread's time goes, ms a batch with what it calls"]
            lines += [f"  {milliseconds:8.2f}  {name}" for name, milliseconds in places]
    return lines


def bars_for(measured: Sequence[Overhead]) -> list[Bar]:
    """At most 3 % more than the plain loop."""
    return [
        Bar(each.subject, f"{cost.way} / plain loop", cost.ratio.median, MOST, note=str(cost.ratio))
        for each in measured
        for cost in each.costs
        if cost.way != LOOP
    ]
