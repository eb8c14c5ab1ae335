"""The look of every picture: two themes, plain axes, labels that cannot break, PNG bytes.

Only matplotlib's object interface is used, so drawing touches no global state and needs no display.
"""

import io
from dataclasses import dataclass
from functools import cache
from typing import Final

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import FuncFormatter, MaxNLocator

__all__ = [
    "DARK",
    "LIGHT",
    "Theme",
    "elide",
    "new_figure",
    "outside_legend",
    "percent_axis",
    "png",
    "safe_label",
    "tidy",
]

_DOTS_PER_INCH = 150
_FONT = "DejaVu Sans"  # comes with matplotlib, so pictures are equal everywhere


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours of a picture, as hexadecimal strings.

    Attributes:
        surface: behind everything.
        ink: text.
        muted: axes, text of second rank and curves of versions that are too many to tell apart.
        grid: lines behind the data.
        guard: the guard, everywhere.
        right: right answers.
        wrong: wrong answers.
        series: further series, told apart by colour-blind people too (after Okabe and Ito).
    """

    surface: str
    ink: str
    muted: str
    grid: str
    guard: str
    right: str
    wrong: str
    series: tuple[str, ...]


LIGHT: Final = Theme(
    surface="#ffffff",
    ink="#1c2127",
    muted="#66707c",
    grid="#e3e6ea",
    guard="#0b5fae",
    right="#0a8f72",
    wrong="#d1540a",
    series=("#d1540a", "#0a8f72", "#b8559a", "#c08a00", "#3c9bd6", "#5b5f97"),
)
DARK: Final = Theme(
    surface="#1a1e24",
    ink="#e7eaee",
    muted="#98a2ae",
    grid="#333a44",
    guard="#5fb0ff",
    right="#2fc19d",
    wrong="#ff8a45",
    series=("#ff8a45", "#2fc19d", "#e08fc4", "#e3b341", "#9ad1f5", "#a5a8e0"),
)


def new_figure(theme: Theme, width: float, height: float) -> Figure:
    """An empty figure of this size in inches; its parts make room for each other."""
    return Figure(figsize=(width, height), facecolor=theme.surface, layout="constrained")


def tidy(axes: Axes, theme: Theme, x_label: str = "", y_label: str = "") -> None:
    """Give axes the look of the report: a light grid, no box, small quiet ticks."""
    axes.set_facecolor(theme.surface)
    axes.grid(True, color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme.muted, labelsize=9, length=0, labelfontfamily=_FONT)
    for side, spine in axes.spines.items():
        spine.set_visible(side in {"left", "bottom"})
        spine.set_color(theme.grid)
    axes.set_xlabel(x_label, color=theme.ink, fontsize=10, family=_FONT)
    axes.set_ylabel(y_label, color=theme.ink, fontsize=10, family=_FONT)


def percent_axis(axis: Axis) -> None:
    """Ticks at round percentages."""
    axis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %".replace("-", "−")))


def outside_legend(figure: Figure, axes: Axes, theme: Theme, columns: int) -> None:
    """Write the legend of the axes below the picture, where it covers no data."""
    handles, labels = axes.get_legend_handles_labels()
    font = FontProperties(family=_FONT, size=9)
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=min(columns, len(handles)),
        frameon=False,
        labelcolor=theme.ink,
        prop=font,
    )


def png(figure: Figure) -> bytes:
    """The picture as PNG, the same bytes for the same picture."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": None})
    return buffer.getvalue()


def elide(text: str, longest: int) -> str:
    """Shorten a name in its middle, as names of versions differ at both ends.

    >>> elide("compact_resnet+label_noise-s0", 15)
    'compact…oise-s0'
    """
    if len(text) <= longest:
        return text
    head = longest // 2
    return text[:head] + "…" + text[len(text) - (longest - head - 1) :]


def safe_label(text: str, longest: int = 30) -> str:
    """A name that matplotlib draws letter by letter: no formulas, no line breaks, no missing glyphs.

    >>> safe_label("two  words"), safe_label("a_very_long_name", 9)
    ('two words', 'a_ve…name')
    """
    known = _glyphs()
    drawn = "".join(letter if ord(letter) in known else "□" for letter in " ".join(text.split()))
    shortened = elide(drawn, longest)
    # Legends leave out labels that begin with an underscore; a space of no width keeps them in.
    shown = "\u200b" + shortened if shortened.startswith("_") else shortened
    return shown.replace("$", r"\$")


@cache
def _glyphs() -> frozenset[int]:
    return frozenset(get_font(findfont(FontProperties(family=_FONT))).get_charmap())
