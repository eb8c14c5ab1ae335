"""What all benchmarks print and write alike: tables, requirements with their figures, JSON."""

import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from deepfailguard.identity import digest
from deepfailguard.store import save_text

__all__ = ["Bar", "aligned", "as_json", "bar_lines", "digest_of_code", "percent", "say", "write_json"]

_ROOT: Final = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class Bar:
    """One requirement.

    Attributes:
        subject: on which.
        text: what is measured.
        figure: NaN if it was not measured, for the reason that `note` gives.
        limit: what it is held against.
        at_least: whether the figure must be at least the limit; else at most.
        note: what the reader needs besides.
    """

    subject: str
    text: str
    figure: float
    limit: float
    at_least: bool = False
    note: str = ""

    @property
    def verdict(self) -> str:
        """`reached`, `MISSED` or `not measured`."""
        if math.isnan(self.figure):
            return "not measured"
        reached = self.figure >= self.limit if self.at_least else self.figure <= self.limit
        return "reached" if reached else "MISSED"


def bar_lines(bars: Sequence[Bar]) -> list[str]:
    """A line for each bar, and a sum."""
    told = [(bar.verdict, bar.subject, bar.text, _number(bar.figure), _limit(bar), bar.note) for bar in bars]
    table = aligned([("bar", "subject", "what", "figure", "must be", "note"), *told], left=(0, 1, 2, 5))
    counts = {verdict: sum(bar.verdict == verdict for bar in bars) for verdict in ("reached", "MISSED", "not measured")}
    return [*table, ", ".join(f"{count} {verdict}" for verdict, count in counts.items())]


def aligned(lines: Sequence[Sequence[str]], left: tuple[int, ...] = (0,)) -> list[str]:
    """A table of cells; the columns in `left` begin at one place, the others end at one.

    >>> aligned([("a", "1"), ("bb", "22")])
    ['a    1', 'bb  22']
    """
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return ["  ".join(_padded(line, widths, left)).rstrip() for line in lines]


def percent(share: float, digits: int = 1) -> str:
    """In percent, without the sign.

    >>> percent(0.123), percent(float("nan"))
    ('12.3', '-')
    """
    return "-" if math.isnan(share) else f"{100 * share:.{digits}f}"


def as_json(settings: dict[str, Any], results: dict[str, Any], bars: Sequence[Bar]) -> dict[str, Any]:
    """Settings, results and bars, with null for what was not measured."""
    told = [{**asdict(bar), "verdict": bar.verdict} for bar in bars]
    plain: dict[str, Any] = _without_nan({"settings": settings, **results, "bars": told})
    return plain


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write the figures."""
    save_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def say(line: str) -> None:
    """Progress, beside the results."""
    print(f"  ... {line}", file=sys.stderr, flush=True)


def _padded(line: Sequence[str], widths: Sequence[int], left: tuple[int, ...]) -> Iterator[str]:
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


def digest_of_code(*patterns: str) -> str:
    """Of source files, named from the repository's root: another digest, other answers."""
    files = [path for pattern in patterns for path in sorted(_ROOT.glob(pattern))]
    return digest([path.read_text(encoding="utf-8") for path in files])
