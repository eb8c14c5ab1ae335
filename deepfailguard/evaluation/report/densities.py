"""The picture of boundary distances: one small panel per version, right answers against wrong ones."""

from dataclasses import dataclass

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from deepfailguard.evaluation.records import Evaluation
from deepfailguard.evaluation.report.drawing import Theme, new_figure, safe_label, tidy
from deepfailguard.predictor.density import fit_density, log_density
from deepfailguard.types import Evidence

__all__ = ["density_picture"]

_COLUMNS = 3
_STEPS = 256


@dataclass(frozen=True, slots=True)
class _Panel:
    """Distances of one version, float64, found ones only; and how many answers had none."""

    name: str
    right: Tensor
    wrong: Tensor
    without: int

    @property
    def together(self) -> Tensor:
        return torch.cat([self.right, self.wrong])


def density_picture(evaluation: Evaluation, theme: Theme) -> Figure:
    """Densities of boundary distance of right and of wrong answers, on calibration inputs where these are known."""
    panels = _panels(evaluation)
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(theme, 9.0, 0.7 + 2.1 * rows)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, panel in zip(grid, panels, strict=False):
        _draw(axes, panel, theme)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    figure.supxlabel("boundary distance", color=theme.ink, fontsize=10)
    _legend(figure, grid[0], theme)
    return figure


def _panels(evaluation: Evaluation) -> list[_Panel]:
    evidence, truth = evaluation.calibration, evaluation.calibration_truth
    if evidence is None or truth is None:
        evidence, truth = evaluation.evidence, evaluation.truth
    return [_panel(name, evidence, truth, i) for i, name in enumerate(evaluation.names)]


def _panel(name: str, evidence: Evidence, truth: Tensor, column: int) -> _Panel:
    labels, distance = evidence.labels[:, column], evidence.distance[:, column].double()
    usable = evidence.found[:, column] & evidence.answered[:, column] & torch.isfinite(distance)
    right = labels == truth
    return _Panel(
        name, distance[usable & right].cpu(), distance[usable & ~right].cpu(), len(labels) - int(usable.sum())
    )


def _draw(axes: Axes, panel: _Panel, theme: Theme) -> None:
    tidy(axes, theme)
    axes.set_yticks([])
    axes.grid(False, axis="y")
    without = f", {panel.without} without distance" if panel.without else ""
    counts = f"{len(panel.right)} right, {len(panel.wrong)} wrong{without}"
    axes.set_title(f"{safe_label(panel.name, 34)}\n", color=theme.ink, fontsize=9.5, loc="left", pad=2)
    axes.text(0, 1.03, counts, transform=axes.transAxes, color=theme.muted, fontsize=8.5)
    if len(panel.together) == 0:
        axes.set_xticks([])
        axes.text(0.5, 0.5, "no distances", transform=axes.transAxes, ha="center", color=theme.muted, fontsize=9)
        return
    edge = _edge(panel.together)
    _side(axes, panel.right, edge, theme.right, "-")
    _side(axes, panel.wrong, edge, theme.wrong, "--")
    axes.set_xlim(0, edge)
    axes.set_ylim(bottom=0)


def _side(axes: Axes, distances: Tensor, edge: float, color: str, dashes: str) -> None:
    """A curve where a density can be estimated, else a mark per answer."""
    density = fit_density(distances, edge)
    if not density.known:
        for distance in distances.tolist():
            axes.axvline(distance, ymax=0.25, color=color, linestyle=dashes, linewidth=2)
        return
    x = torch.linspace(0, edge, _STEPS, dtype=torch.float64)
    height = log_density(density.points, density.bandwidth, x).exp().tolist()
    axes.plot(x.tolist(), height, color=color, linewidth=1.8, linestyle=dashes)
    axes.fill_between(x.tolist(), height, color=color, alpha=0.14, linewidth=0)


def _edge(distances: Tensor) -> float:
    """Right end of the axis: the few answers far outside would flatten everything else."""
    edge = 1.1 * float(torch.quantile(distances[: 1 << 23], 0.99))
    return edge if edge > 0 else 1.0


def _legend(figure: Figure, axes: Axes, theme: Theme) -> None:
    right = axes.plot([], [], color=theme.right, linewidth=1.8)[0]
    wrong = axes.plot([], [], color=theme.wrong, linewidth=1.8, linestyle="--")[0]
    names = ["right answers", "wrong answers"]
    figure.legend(
        [right, wrong], names, loc="outside upper left", ncols=2, frameon=False, fontsize=9, labelcolor=theme.ink
    )
