"""From cascades to tables and bars."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Final

from benchmarks.cascades.measuring import ORDERS, Cascade
from benchmarks.decisions.ensembles import SETTINGS
from benchmarks.reporting import Bar, aligned, percent
from deepfailguard.predictor.staged import StagedPredictor

__all__ = ["Row", "as_plain", "bars_for", "row_lines", "row_of"]

_HEAD: Final = (
    "order",
    "setting",
    "ensembles",
    "versions asked",
    "(expected)",
    "cost FPE",
    "of it judging",
    "cascade %",
    "all versions %",
    "best single %",
    "loss, points",
    "worst",
)
_ALL: Final = "all"


@dataclass(frozen=True, slots=True)
class Row:
    """Means over the cascades of one order in one setting.

    Attributes:
        order: one of `ORDERS`.
        setting: of the ensembles, or "all".
        ensembles: how many.
        versions: asked per input.
        expected: so many were expected after cross-validation.
        cost: of an input, in forward passes of an average version, judging included.
        judging: of that.
        cascade: accuracy.
        full: accuracy of all versions together.
        single: accuracy of the best single version.
        loss: of the cascade, beside all versions together.
        worst: the largest loss of an ensemble.
    """

    order: str
    setting: str
    ensembles: int
    versions: float
    expected: float
    cost: float
    judging: float
    cascade: float
    full: float
    single: float
    loss: float
    worst: float


def row_of(cascades: Sequence[Cascade], setting: str) -> Row:
    """The means over cascades of one order."""
    accuracies = ([each.right for each in cascades], [e.full for e in cascades], [e.single for e in cascades])
    cascade, full, single = (fmean(float(right.double().mean()) for right in each) for each in accuracies)
    return Row(
        order=cascades[0].order,
        setting=setting,
        ensembles=len(cascades),
        versions=fmean(each.versions for each in cascades),
        expected=fmean(each.expected for each in cascades),
        cost=fmean(each.cost for each in cascades),
        judging=fmean(each.judging for each in cascades),
        cascade=cascade,
        full=full,
        single=single,
        loss=full - cascade,
        worst=max(each.loss for each in cascades),
    )


def row_lines(cascades: Sequence[Cascade]) -> list[str]:
    """A table: a line for each order and setting."""
    return aligned([_HEAD, *map(_cells, _rows(cascades))], left=(0, 1))


def bars_for(data: str, cascades: Sequence[Cascade]) -> list[Bar]:
    """What has to be reached, in each order."""
    rows = [row for row in _rows(cascades) if row.setting == _ALL]
    return [*(bar for row in rows for bar in _bars(data, row)), _distances(data)]


def as_plain(data: str, cascades: Sequence[Cascade]) -> dict[str, Any]:
    """Everything, ready for JSON."""
    return {"data": data, "rows": [asdict(row) for row in _rows(cascades)]}


def _rows(cascades: Sequence[Cascade]) -> Iterator[Row]:
    for order in ORDERS:
        mine = [each for each in cascades if each.order == order]
        for setting in (*SETTINGS, _ALL):
            here = [each for each in mine if setting in (_ALL, each.setting)]
            if here:
                yield row_of(here, setting)


def _bars(data: str, row: Row) -> Iterator[Bar]:
    note = f"{100 * row.cascade:.2f} % beside {100 * row.full:.2f} %; worst ensemble {100 * row.worst:.2f} points"
    yield Bar(data, f"{row.order}: versions asked per input", row.versions, 1.5, note=f"expected {row.expected:.2f}")
    yield Bar(data, f"{row.order}: accuracy below that of all versions, points", 100 * row.loss, 0.1, note=note)
    yield Bar(data, f"{row.order}: cost in forward passes of a version", row.cost, 2, note=f"judging {row.judging:.3f}")


def _distances(data: str) -> Bar:
    """The predictor asks for distances of all inputs or of none."""
    used = float("distances" in StagedPredictor.needs)
    return Bar(data, "share of inputs whose boundary distance is searched", used, 0.2, note="the predictor needs none")


def _cells(row: Row) -> tuple[str, ...]:
    counts = (f"{row.versions:.3f}", f"{row.expected:.3f}", f"{row.cost:.3f}", f"{row.judging:.3f}")
    shares = (percent(value, 2) for value in (row.cascade, row.full, row.single, row.loss, row.worst))
    return (row.order, row.setting, str(row.ensembles), *counts, *shares)
