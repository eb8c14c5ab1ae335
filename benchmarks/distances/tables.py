"""The figures as plain text."""

from collections.abc import Iterable, Mapping

from benchmarks.distances.figures import Row
from benchmarks.reporting import aligned

__all__ = ["memory_line", "row_lines"]

_HEAD = ("method", "FPE", "x faster", "(10..90 %)", "median", "p5", "p95", "worst", "failed", "Spearman")


def row_lines(rows: Iterable[Row]) -> list[str]:
    """A table: one line for each method, the distance ratios beside the reference."""
    return aligned([_HEAD, *map(_cells, rows)])


def memory_line(memory: Mapping[str, float]) -> str:
    """Peak memory of what was called.

    >>> memory_line({"balanced": 3 * 2**20})
    'peak memory: balanced 3 MiB'
    """
    told = ", ".join(f"{work} {count / 2**20:.0f} MiB" for work, count in memory.items())
    return f"peak memory: {told or 'this system does not tell'}"


def _cells(row: Row) -> tuple[str, ...]:
    span = f"({row.faster.low:.3g}..{row.faster.high:.3g})"
    cost = (row.method, f"{row.fpe.middle:.3g}", f"{row.faster.middle:.3g}", span)
    correlation = "" if row.spearman is None else f"{row.spearman:.3f}"
    if row.quality is None:
        return (*cost, *[""] * 5, correlation)
    told = row.quality
    ratios = (f"{value:.3f}" for value in (told.median, told.p5, told.p95, told.worst))
    return (*cost, *ratios, str(told.failures), correlation)
