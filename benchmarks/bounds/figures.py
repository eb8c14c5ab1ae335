"""From simulated calibrations to tables and bars."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Final

import torch

from benchmarks.bounds.simulating import Kept, Sets
from benchmarks.bounds.thresholds import OURS
from benchmarks.reporting import Bar, aligned, percent

__all__ = ["Row", "SetsRow", "as_plain", "bars_for", "row_lines", "rows_of", "sets_lines", "sets_rows"]

_HEAD: Final = ("way", "risk %", "holds %", "lowest %", "coverage %", "true risk %", "nothing answered %")
_SETS_HEAD: Final = ("miss rate %", "true %", "highest %", "classes in a set")
_STANDARD_ERRORS: Final = 3  # of the mean over the simulations: sets keep their miss rate on average, and just so


@dataclass(frozen=True, slots=True)
class Row:
    """One way at one risk, over all worlds.

    Attributes:
        way: its name.
        risk: that was allowed.
        worlds: how many.
        holds: share of all calibrations after which the true risk is at most that.
        lowest: the same of the world with the fewest.
        coverage: mean.
        true_risk: mean.
        nothing: share of all calibrations after which nothing is answered.
    """

    way: str
    risk: float
    worlds: int
    holds: float
    lowest: float
    coverage: float
    true_risk: float
    nothing: float


@dataclass(frozen=True, slots=True)
class SetsRow:
    """Prediction sets at one miss rate, over all worlds.

    Attributes:
        miss_rate: that was allowed.
        misses: mean true miss rate.
        error: standard error of that, by the luck of the simulations.
        highest: mean of the world with the most.
        size: mean number of classes in a set.
    """

    miss_rate: float
    misses: float
    error: float
    highest: float
    size: float


def rows_of(kept: Sequence[Kept]) -> list[Row]:
    """A row for each risk and way."""
    groups = dict.fromkeys((each.risk, each.way) for each in kept)
    return [_row(way, risk, [e for e in kept if (e.risk, e.way) == (risk, way)]) for risk, way in groups]


def sets_rows(sets: Sequence[Sets]) -> list[SetsRow]:
    """A row for each miss rate."""
    rates = dict.fromkeys(each.miss_rate for each in sets)
    return [_sets_row(rate, [each for each in sets if each.miss_rate == rate]) for rate in rates]


def row_lines(rows: Sequence[Row]) -> list[str]:
    """A table: one line for each risk and way."""
    return aligned([_HEAD, *map(_cells, rows)])


def sets_lines(rows: Sequence[SetsRow]) -> list[str]:
    """A table: one line for each miss rate."""
    cells = [(percent(r.miss_rate), percent(r.misses, 2), percent(r.highest, 2), f"{r.size:.2f}") for r in rows]
    return aligned([_SETS_HEAD, *cells])


def bars_for(data: str, rows: Sequence[Row], sets: Sequence[SetsRow], confidence: float) -> list[Bar]:
    """What has to be kept: our bound at every risk, and the sets at every miss rate."""
    return [*_bound_bars(data, rows, confidence), *(_sets_bar(data, row) for row in sets)]


def as_plain(data: str, rows: Sequence[Row], sets: Sequence[SetsRow]) -> dict[str, Any]:
    """Everything, ready for JSON."""
    return {"data": data, "bounds": [asdict(row) for row in rows], "sets": [asdict(row) for row in sets]}


def _row(way: str, risk: float, kept: Sequence[Kept]) -> Row:
    mean = {name: fmean(getattr(e, name) for e in kept) for name in ("holds", "coverage", "true_risk", "nothing")}
    return Row(way=way, risk=risk, worlds=len(kept), lowest=min(each.holds for each in kept), **mean)


def _sets_row(rate: float, sets: Sequence[Sets]) -> SetsRow:
    misses = torch.stack([each.misses for each in sets])
    # The worlds are what they are; only the calibrations were drawn.
    error = float((misses.var(1) / misses.shape[1]).mean() / len(sets)) ** 0.5
    highest, size = float(misses.mean(1).amax()), fmean(each.size for each in sets)
    return SetsRow(rate, float(misses.mean()), error, highest, size)


def _bound_bars(data: str, rows: Sequence[Row], confidence: float) -> Iterator[Bar]:
    for row in (each for each in rows if each.way == OURS):
        others = [each for each in rows if each.risk == row.risk and each.way != OURS]
        told = "; ".join(f"{e.way} {percent(e.holds)} % at coverage {percent(e.coverage)} %" for e in others)
        note = f"lowest ensemble {percent(row.lowest)} %; coverage {percent(row.coverage)} %; {told}"
        text = f"risk {row.risk:.0%}: share of calibrations after which the bound holds"
        yield Bar(data, text, row.holds, confidence, True, note)


def _sets_bar(data: str, row: SetsRow) -> Bar:
    limit = row.miss_rate + _STANDARD_ERRORS * row.error
    text = f"prediction sets, miss rate {row.miss_rate:.0%}: true miss rate, mean over calibrations"
    note = f"{_STANDARD_ERRORS} standard errors of the simulation allowed; {row.size:.2f} classes in a set"
    return Bar(data, text, row.misses, limit, note=note)


def _cells(row: Row) -> tuple[str, ...]:
    shares = (percent(value) for value in (row.risk, row.holds, row.lowest, row.coverage))
    return (row.way, *shares, percent(row.true_risk, 2), percent(row.nothing))
