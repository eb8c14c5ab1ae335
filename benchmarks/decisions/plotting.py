"""Rescue share by the number of versions: a line for each rule, a panel for each data set."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.decisions.bars import Measured
from benchmarks.decisions.figures import Row
from benchmarks.decisions.rules import (
    BEST_SINGLE,
    GUARD,
    LOG_POOL,
    PAPER,
    POSTERIOR,
    SOFT_VOTE,
    STACKING,
    TIES_BY_ACCURACY,
    TUNED_STACKING,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw", "plot"]

_PANEL: Final = (5.2, 4.4)  # inches
_LEGEND: Final = 0.9  # inches below the panels
_STYLE: Final[Mapping[str, tuple[str, str]]] = {
    GUARD: ("#c0392b", "-"),
    TUNED_STACKING: ("#2c3e50", "-"),
    STACKING: ("#2c3e50", "--"),
    POSTERIOR: ("#2980b9", "-"),
    "OLA": ("#8e44ad", ":"),
    "KNORA-U": ("#8e44ad", "--"),
    "KNORA-E": ("#8e44ad", "-."),
    "DES-P": ("#8e44ad", "-"),
    SOFT_VOTE: ("#27ae60", "-"),
    LOG_POOL: ("#27ae60", "--"),
    BEST_SINGLE: ("#7f8c8d", "--"),
    TIES_BY_ACCURACY: ("#7f8c8d", "-"),
    PAPER: ("#e67e22", "-"),
}
"""Colour and line of each rule, related ones in one colour."""


def plot(results: Sequence[Measured], path: Path) -> None:
    """Write the drawing as a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(results).savefig(path)


def draw(results: Sequence[Measured]) -> "Figure":
    """Draw the rescue share against the number of versions; the guard's with its 95 % interval."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size = (max(8.0, _PANEL[0] * len(results)), _PANEL[1] + _LEGEND)
    figure = Figure(figsize=size, layout="constrained", dpi=140)
    FigureCanvasAgg(figure)  # draws without a display
    axes = figure.subplots(1, len(results), squeeze=False)[0]
    for axis, measured in zip(axes, results, strict=True):
        _panel(axis, measured)
    axes[0].set_ylabel("rescue share: % of the way from majority to oracle")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure


def _panel(axis: Any, measured: Measured) -> None:
    for rule, (colour, line) in _STYLE.items():
        rows = _rows(measured, rule)
        if rows:
            width = 2.4 if rule == GUARD else 1.2
            shares = [100 * row.share for row in rows.values()]
            axis.plot(list(rows), shares, line, color=colour, linewidth=width, marker="o", markersize=3, label=rule)
    guard = _rows(measured, GUARD)
    ends = [[100 * getattr(row, end) for row in guard.values()] for end in ("low", "high")]
    axis.fill_between(list(guard), *ends, color=_STYLE[GUARD][0], alpha=0.15, linewidth=0)
    for height in (0, 100):  # majority and oracle
        axis.axhline(height, color="#999999", linewidth=0.8, linestyle="--")
    axis.set_xticks(list(guard))
    axis.grid(alpha=0.25)
    ensembles = sum(row.ensembles for row in guard.values())
    axis.set_title(f"{measured.data}, {ensembles} ensembles")
    axis.set_xlabel("versions")


def _rows(measured: Measured, rule: str) -> dict[int, Row]:
    """The rule's row by the number of versions."""
    return {size: row for size, rows in measured.by_versions.items() for row in rows if row.rule == rule}
