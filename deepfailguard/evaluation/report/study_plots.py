"""The picture of a study: rescue share by ensemble size and rule, one panel per setting."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deepfailguard.evaluation.report.drawing import (
    Theme,
    new_figure,
    outside_legend,
    percent_axis,
    safe_label,
    tidy,
)
from deepfailguard.evaluation.report.figures import percent

__all__ = ["can_draw_study", "study_picture"]

_COLUMNS = 2
_LOWEST = -1.0  # a tiny headroom gives shares far below; they stand at the lower edge with their figure
_NEEDED: Final = frozenset({"size", "rule", "rescue_share"})
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_DASHES = ("-", "--", "-.", ":")


@dataclass(frozen=True, slots=True)
class _Line:
    """One rule's rescue shares by position of the ensemble size, and its look."""

    rule: str
    places: list[int]
    shares: list[float]
    color: str
    marker: str
    dashes: str
    width: float


def can_draw_study(summary: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the rows tell size, rule and a rescue share that is defined somewhere."""
    return all(row.keys() >= _NEEDED for row in summary) and any(row["rescue_share"] is not None for row in summary)


def study_picture(summary: Sequence[Mapping[str, Any]], theme: Theme) -> Figure:
    """Draw rows with ``size``, ``rule``, ``rescue_share`` and, if there are several, ``setting``.

    The first rule is drawn as the main one.
    """
    settings = list(dict.fromkeys(str(row.get("setting", "")) for row in summary))
    rules = list(dict.fromkeys(str(row["rule"]) for row in summary))
    columns = min(_COLUMNS, len(settings))
    rows = -(-len(settings) // columns)
    figure = new_figure(theme, 9.0, 0.9 + 2.9 * rows + 0.1 * len(rules))
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    low, high = _range(summary)
    for axes, setting in zip(grid, settings, strict=False):
        shown = [row for row in summary if str(row.get("setting", "")) == setting]
        _draw(axes, shown, rules, theme)
        axes.set_title(safe_label(setting.replace("_", " "), 40), color=theme.ink, fontsize=10.5, loc="left")
        axes.set_ylim(low, high)
    for axes in grid[len(settings) :]:
        axes.set_axis_off()
    for place in range(0, len(settings), columns):
        grid[place].set_ylabel("rescue share", color=theme.ink, fontsize=10)
    outside_legend(figure, grid[0], theme, columns=4)
    return figure


def _draw(axes: Axes, summary: Sequence[Mapping[str, Any]], rules: Sequence[str], theme: Theme) -> None:
    sizes = sorted({int(row["size"]) for row in summary})
    counted = all("ensembles" in row for row in summary)
    tidy(axes, theme, x_label="versions in an ensemble" + (" (how many ensembles)" if counted else ""))
    axes.axhline(0, color=theme.ink, linewidth=1)
    for line in _lines(summary, rules, sizes, theme):
        drawn = [max(_LOWEST, share) for share in line.shares]
        look: dict[str, Any] = {
            "color": line.color,
            "marker": line.marker,
            "linestyle": line.dashes,
            "linewidth": line.width,
        }
        axes.plot(line.places, drawn, markersize=6, label=safe_label(line.rule), **look)
        for place, share in zip(line.places, line.shares, strict=True):
            if share < _LOWEST:
                axes.annotate(
                    f"{percent(share, 0)} ↓",
                    (place, _LOWEST),
                    (0, 6),
                    textcoords="offset points",
                    color=line.color,
                    fontsize=8.5,
                    ha="center",
                )
    axes.set_xticks(range(len(sizes)), [_size_label(size, summary) for size in sizes])
    axes.set_xlim(-0.4, len(sizes) - 0.6)
    percent_axis(axes.yaxis)


def _lines(
    summary: Sequence[Mapping[str, Any]], rules: Sequence[str], sizes: Sequence[int], theme: Theme
) -> list[_Line]:
    lines = []
    for i, rule in enumerate(rules):
        shares = {int(r["size"]): r["rescue_share"] for r in summary if str(r["rule"]) == rule}
        places = [place for place, size in enumerate(sizes) if shares.get(size) is not None]
        values = [float(shares[sizes[place]]) for place in places]
        color = theme.guard if i == 0 else theme.series[(i - 1) % len(theme.series)]
        marker, dashes = _MARKERS[i % len(_MARKERS)], _DASHES[i % len(_DASHES)]
        lines.append(_Line(rule, places, values, color, marker, dashes, 2.6 if i == 0 else 1.5))
    return lines


def _size_label(size: int, summary: Sequence[Mapping[str, Any]]) -> str:
    counts = [row["ensembles"] for row in summary if int(row["size"]) == size and "ensembles" in row]
    return f"{size}\n({counts[0]})" if counts else str(size)


def _range(summary: Sequence[Mapping[str, Any]]) -> list[float]:
    shares = [float(row["rescue_share"]) for row in summary if row["rescue_share"] is not None]
    low, high = max(_LOWEST, min(0.0, *shares)), max(0.05, *shares)
    margin = 0.06 * (high - low)
    return [low - margin, high + margin]
