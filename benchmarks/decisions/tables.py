"""The figures as plain text and as JSON."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

from benchmarks.decisions.bars import Measured
from benchmarks.decisions.figures import Row, ShiftRow
from benchmarks.distances.bars import Bar

__all__ = ["as_json", "row_lines", "setting_lines", "shift_lines"]

_HEAD: Final = ("rule", "share %", "(95 %)", "guard ahead", "at least", "accuracy %", "worse than simple", "ECE %")
_SHIFT_HEAD: Final = (
    "shift",
    "ensembles",
    "majority %",
    "soft vote %",
    "guard %",
    "oracle %",
    "share %",
    "soft vote's share %",
    "significantly below",
    "ECE %",
)


def row_lines(rows: Sequence[Row]) -> list[str]:
    """A table: one line for each rule."""
    return _aligned([_HEAD, *map(_cells, rows)])


def setting_lines(measured: Measured) -> list[str]:
    """A table of rescue shares: one line for each rule, a column for each setting."""
    settings = list(measured.by_setting)
    counts = [f"{name} ({measured.by_setting[name][0].ensembles})" for name in settings]
    shares = {name: {row.rule: row.share for row in rows} for name, rows in measured.by_setting.items()}
    rules = list(dict.fromkeys(rule for each in shares.values() for rule in each))
    lines = [[rule, *(_percent(shares[name].get(rule, math.nan)) for name in settings)] for rule in rules]
    return _aligned([["share %", *counts], *lines])


def shift_lines(rows: Sequence[ShiftRow]) -> list[str]:
    """A table: one line for each shift."""
    return _aligned([_SHIFT_HEAD, *map(_shift_cells, rows)])


def as_json(settings: dict[str, Any], results: Sequence[Measured], bars: Sequence[Bar]) -> dict[str, Any]:
    """Everything, with null for what was not measured."""
    content = {
        "settings": settings,
        "data": [_plain(measured) for measured in results],
        "bars": [{**asdict(bar), "verdict": bar.verdict} for bar in bars],
    }
    kept: dict[str, Any] = _without_nan(content)
    return kept


def _plain(measured: Measured) -> dict[str, Any]:
    plain = asdict(measured)
    return {**plain, "by_versions": {str(size): rows for size, rows in plain["by_versions"].items()}}


def _cells(row: Row) -> tuple[str, ...]:
    span = f"({_percent(row.low)}..{_percent(row.high)})"
    worse = f"{row.worse} of {row.ensembles}"
    ece = "" if row.ece is None else _percent(row.ece)
    ahead = (_percent(row.ahead), _percent(row.ahead_low))
    return (row.rule, _percent(row.share), span, *ahead, _percent(row.accuracy, 2), worse, ece)


def _shift_cells(row: ShiftRow) -> tuple[str, ...]:
    accuracies = (_percent(value, 2) for value in (row.majority, row.soft_vote, row.guard, row.oracle))
    shares = (_percent(row.share), _percent(row.soft_share))
    return (row.shift, str(row.ensembles), *accuracies, *shares, f"{row.below} of {row.ensembles}", _percent(row.ece))


def _percent(share: float, digits: int = 1) -> str:
    """In percent, without the sign.

    >>> _percent(0.123), _percent(float("nan"))
    ('12.3', '-')
    """
    return "-" if math.isnan(share) else f"{100 * share:.{digits}f}"


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    first, rest = widths[0], widths[1:]
    return [
        "  ".join([line[0].ljust(first), *(cell.rjust(w) for cell, w in zip(line[1:], rest, strict=True))]).rstrip()
        for line in lines
    ]


def _without_nan(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
