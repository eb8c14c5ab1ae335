"""The figures as plain text and as JSON."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.distances.bars import Bar, Measured
from benchmarks.distances.figures import Row

__all__ = ["as_json", "bar_lines", "memory_line", "row_lines"]

_HEAD = ("method", "FPE", "x faster", "(10..90 %)", "median", "p5", "p95", "worst", "failed", "Spearman")


def row_lines(rows: Iterable[Row]) -> list[str]:
    """A table: one line for each method, the distance ratios beside the reference."""
    return _aligned([_HEAD, *map(_cells, rows)])


def bar_lines(bars: Sequence[Bar]) -> list[str]:
    """A line for each bar, and a sum."""
    told = [(bar.verdict, bar.subject, bar.text, _number(bar.figure), _limit(bar), bar.note) for bar in bars]
    table = _aligned([("bar", "subject", "what", "figure", "must be", "note"), *told], left=(0, 1, 2, 5))
    counts = {verdict: sum(bar.verdict == verdict for bar in bars) for verdict in ("reached", "MISSED", "not measured")}
    return [*table, ", ".join(f"{count} {verdict}" for verdict, count in counts.items())]


def memory_line(memory: Mapping[str, float]) -> str:
    """Peak memory of what was called.

    >>> memory_line({"balanced": 3 * 2**20})
    'peak memory: balanced 3 MiB'
    """
    told = ", ".join(f"{work} {count / 2**20:.0f} MiB" for work, count in memory.items())
    return f"peak memory: {told or 'this system does not tell'}"


def as_json(settings: dict[str, Any], results: Sequence[Measured], bars: Sequence[Bar]) -> dict[str, Any]:
    """Everything, with null for what was not measured."""
    content = {
        "settings": settings,
        "subjects": [asdict(measured) for measured in results],
        "bars": [{**asdict(bar), "verdict": bar.verdict} for bar in bars],
    }
    plain: dict[str, Any] = _without_nan(content)
    return plain


def _cells(row: Row) -> tuple[str, ...]:
    span = f"({row.faster.low:.3g}..{row.faster.high:.3g})"
    cost = (row.method, f"{row.fpe.middle:.3g}", f"{row.faster.middle:.3g}", span)
    correlation = "" if row.spearman is None else f"{row.spearman:.3f}"
    if row.quality is None:
        return (*cost, *[""] * 5, correlation)
    told = row.quality
    ratios = (f"{value:.3f}" for value in (told.median, told.p5, told.p95, told.worst))
    return (*cost, *ratios, str(told.failures), correlation)


def _aligned(lines: Sequence[Sequence[str]], left: tuple[int, ...] = (0,)) -> list[str]:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return ["  ".join(_padded(line, widths, left)).rstrip() for line in lines]


def _padded(line: Sequence[str], widths: Sequence[int], left: tuple[int, ...]) -> Iterable[str]:
    for column, (cell, width) in enumerate(zip(line, widths, strict=True)):
        yield cell.ljust(width) if column in left else cell.rjust(width)


def _number(figure: float) -> str:
    return "-" if math.isnan(figure) else f"{figure:.4g}"


def _limit(bar: Bar) -> str:
    return f"{'>=' if bar.at_least else '<='} {bar.limit:g}"


def _without_nan(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
