"""The pictures of an evaluation; each is a function from figures and a theme to a figure."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from deepfailguard.evaluation.failure_prediction import merged_bins, reliability_bins, risk_coverage_curve
from deepfailguard.evaluation.intervals import binomial_interval
from deepfailguard.evaluation.records import Evaluation
from deepfailguard.evaluation.report.drawing import Theme, new_figure, outside_legend, percent_axis, safe_label, tidy
from deepfailguard.evaluation.report.figures import percents
from deepfailguard.evaluation.report.summary import Summary

__all__ = ["accuracy_picture", "reliability_picture", "risk_picture"]

_TOLD_APART = 6  # more curves than this cannot be told apart by colour
_THINNEST_LINE = 1.0  # thinner curves would be a tangle of crossing lines: only their points are drawn
_FEWEST = 20  # inputs of a bin: of fewer the share that is wrong jumps by chance
_LONG_NAME = 24  # letters
_SQUARE = (5.4, 5.2)


@dataclass(frozen=True, slots=True)
class _Curve:
    """Failure probabilities (B,) of the guard or a version, whether its answers were wrong, (B,) bool, and its look."""

    name: str
    failure_probability: Tensor
    wrong: Tensor
    color: str
    width: float
    dashes: str
    order: int


@dataclass(frozen=True, slots=True)
class _Row:
    """One accuracy in the picture of accuracies."""

    name: str
    accuracy: float
    color: str
    marker: str
    filled: bool = True


def accuracy_picture(summary: Summary, theme: Theme) -> Figure:
    """Accuracies of guard, baselines and versions on one axis, the headroom as a band behind them."""
    rows = _accuracy_rows(summary, theme)
    figure = new_figure(theme, 9.0, 1.0 + 0.32 * len(rows))
    axes = figure.subplots()
    tidy(axes, theme, x_label="right answers on test inputs")
    axes.axvspan(summary.measures.majority, summary.measures.oracle, color=theme.guard, alpha=0.12, linewidth=0)
    for place, row in enumerate(rows):
        axes.plot(
            row.accuracy,
            place,
            marker=row.marker,
            markersize=9,
            color=row.color,
            markerfacecolor=row.color if row.filled else theme.surface,
            markeredgewidth=1.8,
        )
    for place, (row, shown) in enumerate(zip(rows, percents([row.accuracy for row in rows]), strict=True)):
        axes.annotate(
            shown, (row.accuracy, place), (9, 0), textcoords="offset points", va="center", fontsize=9, color=theme.ink
        )
    _accuracy_axes(axes, rows, theme)
    return figure


def reliability_picture(evaluation: Evaluation, theme: Theme) -> Figure:
    """Predicted failure probability against the observed share of wrong answers, with 95 % intervals of the latter.

    Bins of equal width, joined with their neighbours until they hold enough inputs for a share to mean something.
    """
    figure = new_figure(theme, *_SQUARE)
    axes = figure.subplots()
    tidy(axes, theme, "predicted failure probability", "share of answers that were wrong")
    axes.plot([0, 1], [0, 1], color=theme.muted, linewidth=1, linestyle=(0, (2, 3)))
    for curve in _curves(evaluation, theme):
        bins = merged_bins(reliability_bins(curve.failure_probability, curve.wrong), least=_FEWEST)
        points = bins.predicted.tolist(), bins.observed.tolist()
        sizes = (8 + 130 * (bins.count / bins.count.sum()).sqrt()).tolist()
        look: dict[str, Any] = {"color": curve.color, "zorder": curve.order}
        if curve.width < _THINNEST_LINE:
            axes.scatter(*points, s=sizes, alpha=0.4, linewidths=0, label=curve.name, **look)
            continue
        hits = (bins.observed * bins.count).round().long()
        axes.vlines(points[0], *binomial_interval(hits, bins.count), linewidth=1.2, alpha=0.4, **look)
        axes.plot(*points, linewidth=curve.width, linestyle=curve.dashes, label=curve.name, **look)
        axes.scatter(*points, s=sizes, alpha=0.75, linewidths=0, **look)
    _share_axes(axes, 1.0)
    outside_legend(figure, axes, theme, columns=_legend_columns(evaluation))
    return figure


def risk_picture(evaluation: Evaluation, theme: Theme) -> Figure:
    """Share of wrong answers if only the most trusted ones were given."""
    figure = new_figure(theme, *_SQUARE)
    axes = figure.subplots()
    tidy(axes, theme, "coverage: share of inputs that are answered", "risk: share of these answers that are wrong")
    highest = 0.0
    for curve in _curves(evaluation, theme):
        risk = risk_coverage_curve(curve.failure_probability, curve.wrong)
        # A single wrong answer among the first few is a risk of 100 % that says nothing of the curve.
        settled = risk.risk[len(risk.risk) // 10 :]
        highest = max(highest, float(settled.max()))
        axes.plot(
            risk.coverage.tolist(),
            risk.risk.tolist(),
            color=curve.color,
            linewidth=curve.width,
            linestyle=curve.dashes,
            label=curve.name,
            zorder=curve.order,
        )
    _share_axes(axes, min(1.0, max(0.01, 1.1 * highest)))
    outside_legend(figure, axes, theme, columns=_legend_columns(evaluation))
    return figure


def _legend_columns(evaluation: Evaluation) -> int:
    """Long names need the whole width of the picture."""
    told_apart = len(evaluation.names) <= _TOLD_APART
    return 1 if told_apart and max(len(name) for name in evaluation.names) > _LONG_NAME else 2


def _curves(evaluation: Evaluation, theme: Theme) -> Iterator[_Curve]:
    """The versions' curves, quiet, then the guard's on top."""
    count = len(evaluation.names)
    few = count <= _TOLD_APART
    wrong = evaluation.evidence.labels != evaluation.truth[:, None]
    for i, name in enumerate(evaluation.names):
        # One entry of the legend stands for all versions where they look alike.
        label = safe_label(name) if few else f"the {count} versions" if i == 0 else "_hidden"
        color = theme.series[i % len(theme.series)] if few else theme.muted
        dashes = ("-", "--", "-.", ":")[i % 4] if few else "-"
        probability = evaluation.failure_probability[:, i].cpu()
        yield _Curve(label, probability, wrong[:, i].cpu(), color, 1.3 if few else 0.6, dashes, 2)
    decision = evaluation.decision
    guard_wrong = (decision.labels != evaluation.truth).cpu()
    yield _Curve("guard", decision.failure_probability.cpu(), guard_wrong, theme.guard, 2.6, "-", 3)


def _accuracy_rows(summary: Summary, theme: Theme) -> list[_Row]:
    measures = summary.measures
    versions = [
        _Row(safe_label(v.name, 36), v.accuracy, theme.wrong if v.fault else theme.muted, "o", not v.fault)
        for v in sorted(summary.versions, key=lambda v: -v.accuracy)
    ]
    return [
        _Row("oracle: any version is right", measures.oracle, theme.ink, "|"),
        _Row("guard", measures.guard, theme.guard, "D"),
        _Row("majority vote", measures.majority, theme.ink, "s"),
        _Row("best version by calibration", measures.best_single, theme.ink, "^"),
        *versions,
    ]


def _accuracy_axes(axes: Axes, rows: list[_Row], theme: Theme) -> None:
    low, high = min(row.accuracy for row in rows), max(row.accuracy for row in rows)
    margin = max(0.02, 0.08 * (high - low))
    # Room for the figures to the right of the last marker.
    axes.set_xlim(max(-0.02, low - margin), high + margin + 0.14 * (high - low + 2 * margin))
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.tick_params(axis="y", labelcolor=theme.ink, labelsize=9.5)
    axes.grid(False, axis="y")
    axes.axhline(3.5, color=theme.grid, linewidth=1)
    percent_axis(axes.xaxis)
    axes.set_xticks([tick for tick in axes.get_xticks() if 0 <= tick <= 1 + 1e-9])


def _share_axes(axes: Axes, top: float) -> None:
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02 * top, 1.02 * top)
    percent_axis(axes.xaxis)
    percent_axis(axes.yaxis)
