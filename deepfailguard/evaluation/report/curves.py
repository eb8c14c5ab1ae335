"""How a training went, as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from deepfailguard.evaluation.report.drawing import LIGHT, Theme, new_figure, outside_legend, percent_axis, png, tidy
from deepfailguard.store import atomic_path

__all__ = ["curves_picture", "write_curves"]


def curves_picture(curves: Mapping[str, Sequence[float]], theme: Theme) -> Figure:
    """Losses on the left, accuracies on the right, over the epochs.

    Args:
        curves: one value per epoch by quantity; those whose name holds "accuracy" are shares.
        theme: colours.
    """
    figure = new_figure(theme, 8.0, 3.2)
    left, right = figure.subplots(1, 2)
    tidy(left, theme, "epoch", "loss")
    tidy(right, theme, "epoch", "accuracy on training images")
    shares = {name: values for name, values in curves.items() if "accuracy" in name}
    _lines(left, {name: values for name, values in curves.items() if name not in shares}, theme)
    _lines(right, shares, theme)
    percent_axis(right.yaxis)
    outside_legend(figure, left, theme, columns=3)
    return figure


def write_curves(curves: Mapping[str, Sequence[float]], path: Path) -> None:
    """Write the picture as a PNG file."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(png(curves_picture(curves, LIGHT)))


def _lines(axes: Axes, curves: Mapping[str, Sequence[float]], theme: Theme) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for color, (name, values) in zip((theme.guard, *theme.series), curves.items(), strict=False):
        epochs = range(1, len(values) + 1)
        axes.plot(epochs, values, color=color, marker="o", markersize=3, label=name.replace("_", " "))
