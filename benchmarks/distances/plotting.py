"""Quality against cost: a panel for each subject."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.distances.bars import Measured

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw", "plot"]

_OURS: Final = "#c0392b"
_THEIRS: Final = "#2c3e50"
_PANEL: Final = (6.4, 4.6)  # inches
_AROUND: Final = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))
_RADII: Final = (8, 14, 24, 38)  # points
_OFFSETS: Final = tuple((radius * right, radius * up) for radius in _RADII for right, up in _AROUND)
_GAP: Final = 3  # pixels around a label


def plot(results: Sequence[Measured], path: Path) -> None:
    """Write the drawing as a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(results).savefig(path)


def draw(results: Sequence[Measured]) -> "Figure":
    """Draw median distance ratio against FPE, a panel for each result."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(2, len(results))
    rows = -(-len(results) // columns)
    figure = Figure(figsize=(_PANEL[0] * columns, _PANEL[1] * rows), layout="constrained", dpi=140)
    FigureCanvasAgg(figure)  # draws without a display, and tells how large a label is
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, measured in zip(axes, results, strict=False):
        _points(axis, measured)
    for axis in axes[len(results) :]:
        axis.set_visible(False)
    figure.draw_without_rendering()  # places are known only after the layout
    for axis, measured in zip(axes, results, strict=False):
        _labels(axis, measured)
    return figure


def _places(measured: Measured) -> dict[str, tuple[float, float]]:
    """FPE and median ratio of each method that searches.

    Ratios are from the images that the patient references saw, if they ran, so that all are of the same images; the
    cost is from all images where it was measured there.
    """
    shown = measured.patient or measured.rows
    costs = {**measured.patient, **measured.rows}
    return {
        name: (costs[name].fpe.middle, row.quality.median)
        for name, row in shown.items()
        if row.quality is not None and row.quality.images
    }


def _points(axis: Any, measured: Measured) -> None:
    places = _places(measured)
    for name, (cost, ratio) in places.items():
        axis.plot(cost, ratio, "o", color=_colour(name), markersize=7)
    ours = sorted(place for name, place in places.items() if _is_ours(name))
    axis.plot(*zip(*ours, strict=True), "-", color=_OURS, linewidth=1, alpha=0.5)
    axis.axhline(1.0, color="#999999", linewidth=0.8, linestyle="--")
    axis.set_xscale("log")
    axis.margins(0.25, 0.22)  # room for the labels
    axis.grid(which="major", alpha=0.25)
    images = max(row.quality.images for row in (measured.patient or measured.rows).values() if row.quality)
    axis.set_title(f"{measured.subject}, {measured.classes} classes, {images} images")
    axis.set_xlabel("cost: forward passes an image (FPE)")
    axis.set_ylabel("median distance / foolbox's DeepFool")


def _labels(axis: Any, measured: Measured) -> None:
    """Put each label where it covers least: neither a point, nor another label, nor the frame."""
    places = _places(measured)
    taken = [_around(axis, place) for place in places.values()]
    for name, place in places.items():
        costs = [_covered(axis, name, place, offset, taken) for offset in _OFFSETS]
        label = _label(axis, name, place, _OFFSETS[costs.index(min(costs))])  # the first, so the nearest, of the best
        taken.append(_extent(axis, label))


def _covered(axis: Any, name: str, place: tuple[float, float], offset: tuple[int, int], taken: Sequence[Any]) -> int:
    label = _label(axis, name, place, offset)
    box, frame = _extent(axis, label), axis.bbox
    label.remove()
    outside = box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1
    return sum(bool(box.overlaps(other)) for other in taken) + (len(taken) + 1) * bool(outside)


def _extent(axis: Any, label: Any) -> Any:
    return label.get_window_extent(axis.figure.canvas.get_renderer()).padded(_GAP)


def _label(axis: Any, name: str, place: tuple[float, float], offset: tuple[int, int]) -> Any:
    right, up = offset
    across = "center" if right == 0 else ("left" if right > 0 else "right")
    upright = "center" if up == 0 else ("bottom" if up > 0 else "top")
    line = {"arrowstyle": "-", "color": "#bbbbbb", "linewidth": 0.6} if max(abs(right), abs(up)) > _RADII[1] else None
    label = axis.annotate(
        name,
        place,
        xytext=offset,
        textcoords="offset points",
        ha=across,
        va=upright,
        fontsize=8,
        color=_colour(name),
        arrowprops=line,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.85},  # no line shall cross it
    )
    label.set_in_layout(False)  # or the panels would be laid out anew, and every place would move
    return label


def _around(axis: Any, place: tuple[float, float]) -> Any:
    from matplotlib.transforms import Bbox

    x, y = axis.transData.transform(place)
    return Bbox([[x - 6, y - 6], [x + 6, y + 6]])


def _is_ours(name: str) -> bool:
    return name.startswith("ours")


def _colour(name: str) -> str:
    return _OURS if _is_ours(name) else _THEIRS
