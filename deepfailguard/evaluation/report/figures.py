"""Numbers as people read them: percent, points, plain decimals, and a dash for what is undefined."""

from collections.abc import Sequence
from typing import Final

__all__ = ["UNDEFINED", "decimal", "percent", "percents", "points"]

UNDEFINED: Final = "–"
_MOST_DIGITS = 4


def percent(share: float | None, digits: int = 1) -> str:
    """A share in per cent.

    >>> percent(0.9721), percent(None)
    ('97.2 %', '–')
    """
    return UNDEFINED if share is None else f"{_signed(100 * share, digits)} %"


def percents(shares: Sequence[float]) -> list[str]:
    """Shares in per cent with as many digits as it takes that different ones look different.

    >>> percents([0.9721, 0.9719]), percents([0.9, 0.9])
    (['97.21 %', '97.19 %'], ['90.0 %', '90.0 %'])
    """
    for digits in range(1, _MOST_DIGITS):
        shown = [percent(share, digits) for share in shares]
        if len(set(shown)) == len(set(shares)):
            return shown
    return [percent(share, _MOST_DIGITS) for share in shares]


def points(difference: float, digits: int = 1) -> str:
    """A difference of two shares in percentage points, with its sign.

    >>> points(0.0112), points(-0.02)
    ('+1.1', '−2.0')
    """
    shown = _signed(100 * difference, digits)
    return shown if float(shown.replace("−", "-")) <= 0 else f"+{shown}"


def decimal(value: float | None, digits: int = 3) -> str:
    """A plain number.

    >>> decimal(0.91234), decimal(None)
    ('0.912', '–')
    """
    return UNDEFINED if value is None else _signed(value, digits)


def _signed(value: float, digits: int) -> str:
    # Adding zero turns the "-0.0" that rounding leaves of small negative numbers into "0.0".
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")
