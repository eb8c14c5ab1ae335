"""The figures as plain text and as plain records."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

from benchmarks.decisions.bars import Measured
from benchmarks.decisions.figures import Row, ShiftRow
from benchmarks.reporting import aligned, percent

__all__ = ["as_plain", "row_lines", "setting_lines", "shift_lines"]

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
    return aligned([_HEAD, *map(_cells, rows)])


def setting_lines(measured: Measured) -> list[str]:
    """A table of rescue shares: one line for each rule, a column for each setting."""
    settings = list(measured.by_setting)
    counts = [f"{name} ({measured.by_setting[name][0].ensembles})" for name in settings]
    shares = {name: {row.rule: row.share for row in rows} for name, rows in measured.by_setting.items()}
    rules = list(dict.fromkeys(rule for each in shares.values() for rule in each))
    lines = [[rule, *(percent(shares[name].get(rule, math.nan)) for name in settings)] for rule in rules]
    return aligned([["share %", *counts], *lines])


def shift_lines(rows: Sequence[ShiftRow]) -> list[str]:
    """A table: one line for each shift."""
    return aligned([_SHIFT_HEAD, *map(_shift_cells, rows)])


def as_plain(measured: Measured) -> dict[str, Any]:
    """Everything, ready for JSON but for what was not measured."""
    plain = asdict(measured)
    return {**plain, "by_versions": {str(size): rows for size, rows in plain["by_versions"].items()}}


def _cells(row: Row) -> tuple[str, ...]:
    span = f"({percent(row.low)}..{percent(row.high)})"
    worse = f"{row.worse} of {row.ensembles}"
    ece = "" if row.ece is None else percent(row.ece)
    ahead = (percent(row.ahead), percent(row.ahead_low))
    return (row.rule, percent(row.share), span, *ahead, percent(row.accuracy, 2), worse, ece)


def _shift_cells(row: ShiftRow) -> tuple[str, ...]:
    accuracies = (percent(value, 2) for value in (row.majority, row.soft_vote, row.guard, row.oracle))
    shares = (percent(row.share), percent(row.soft_share))
    return (row.shift, str(row.ensembles), *accuracies, *shares, f"{row.below} of {row.ensembles}", percent(row.ece))
