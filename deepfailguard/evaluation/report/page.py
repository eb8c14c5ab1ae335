"""Pages: pictures in both themes as data, and templates that escape every name."""

import base64
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from deepfailguard.evaluation.report.drawing import DARK, LIGHT, Theme, png
from deepfailguard.evaluation.report.figures import decimal, percent
from deepfailguard.evaluation.report.tables import readable

__all__ = ["Picture", "draw", "png_uri", "render"]


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture for a light and for a dark page.

    Attributes:
        name: of its file, without the ending.
        light: PNG.
        dark: PNG.
    """

    name: str
    light: bytes
    dark: bytes


def draw(name: str, paint: Callable[[Theme], Figure]) -> Picture:
    """Draw a picture in both themes."""
    return Picture(name, png(paint(LIGHT)), png(paint(DARK)))


def png_uri(data: bytes) -> str:
    """A PNG as an address that holds the whole picture, so that the page needs no other file."""
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")


def render(template: str, **content: Any) -> str:
    """Fill a template of this package; all text is escaped."""
    return _templates().get_template(template).render(**content)


@cache
def _templates() -> Environment:
    templates = Environment(
        loader=PackageLoader("deepfailguard.evaluation.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {
        "percent": _unbroken(percent),
        "decimal": _unbroken(decimal),
        "png_uri": png_uri,
        "whole": _keep_units,
        "breakable": _breakable,
    }
    templates.globals["readable"] = _unbroken(readable)
    return templates


def _unbroken(show: Callable[..., str]) -> Callable[..., str]:
    return lambda *values: _keep_units(show(*values))


def _keep_units(text: str) -> str:
    """Keep a number and its per cent sign on one line."""
    return text.replace(" %", "\u00a0%")


def _breakable(name: str) -> Markup:
    """A name whose lines break after an underscore or a plus rather than within a word."""
    # Escaping writes entities, and these hold neither of the two letters.
    return Markup(re.sub(r"([_+])", r"\1<wbr>", str(escape(name))))
