"""From cases to tables and bars."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Any, Final

from scipy.special import gammaincinv

from benchmarks.reporting import Bar, aligned, percent
from benchmarks.watches.measuring import Accuracies, Case, Quiet

__all__ = ["Measured", "as_plain", "at_most", "bars_for", "is_right", "matters", "noticed", "tables"]

WITHIN: Final = 500
"""Inputs within which a change shall be noticed."""

_MATTERS: Final = 0.01
_NOTICED, _CLOSE, _FALSE_ALARMS = 0.95, 0.01, 1e-5
_CONFIDENCE: Final = 0.95
_HEAD: Final = ("versions", "change", "cases", "matter", "noticed %", "median", "worst", "cause right %", "wrongly %")
_ACCURACY_HEAD: Final = (*_HEAD[:3], "watched", "unwatched", "without", "after: watched", "unwatched", "without")


@dataclass(frozen=True, slots=True)
class Measured:
    """All that was measured on one data set."""

    data: str
    broken: list[Case]
    shifted: list[Case]
    quiet: list[Quiet]


def matters(case: Case) -> bool:
    """Whether the version lost more than a point of accuracy."""
    return case.drop > _MATTERS


def noticed(case: Case) -> bool:
    """Whether an alarm was raised within 500 inputs since the change."""
    return 0 < case.delay <= WITHIN


def is_right(case: Case) -> bool:
    """Whether the first alarm's cause was told right, and who is in quarantine in the end is right too."""
    broke = case.target is not None
    apart = (case.target,) if broke else ()
    return case.first_cause == ("versions" if broke else "inputs") and case.apart == apart


def at_most(events: int, inputs: int) -> float:
    """Upper end of the exact 95 % interval (one-sided) of the rate of rare events.

    >>> round(at_most(0, 1000) * 1000, 2), at_most(0, 0)
    (3.0, inf)
    """
    return float(gammaincinv(events + 1, _CONFIDENCE)) / inputs if inputs else math.inf


def tables(measured: Measured) -> Iterator[str]:
    """What was noticed, how accurate the answers were, and how quiet it stayed."""
    harmful = [case for case in measured.broken if matters(case)]
    harmless = [case for case in measured.broken if not matters(case)]
    yield f"\n{measured.data}: broken versions; faults that cost the version more than a point of accuracy"
    yield from aligned([_HEAD, *_by_kind(harmful, _noticing)], left=(1,))
    yield f"\n{measured.data}: broken versions; faults that cost less"
    yield from aligned([_HEAD, *_by_kind(harmless, _noticing)], left=(1,))
    yield f"\n{measured.data}: changed inputs"
    yield from aligned([_HEAD, *_by_kind(measured.shifted, _noticing)], left=(1,))
    yield f"\n{measured.data}: accuracy since the change, and from the batch of the first alarm on"
    yield from aligned([_ACCURACY_HEAD, *_by_kind([*harmful, *measured.shifted], _accuracy)], left=(1,))
    yield f"\n{measured.data}: undisturbed streams"
    yield from aligned([("versions", "streams", "inputs", "alarms", "per input", "at most"), *_quiet(measured.quiet)])


def bars_for(measured: Measured) -> list[Bar]:
    """What has to be reached."""
    harmful = [case for case in measured.broken if matters(case)]
    alarmed = [case for case in harmful if case.after is not None]
    share = _mean([float(noticed(case)) for case in harmful])
    note = f"{sum(map(noticed, harmful))} of {len(harmful)} faults"
    bars = [Bar(measured.data, f"harmful faults noticed within {WITHIN} inputs", share, _NOTICED, True, note)]
    for text, behind in (
        ("behind the guard that never had the version, after the alarm", [_behind(c.after) for c in alarmed]),
        ("behind it over the whole stream", [_behind(c.stream) for c in harmful]),
    ):
        worst = f"mean over {len(behind)} faults that matter; worst {max(behind, default=math.nan):.4f}"
        bars.append(Bar(measured.data, text, _mean(behind), _CLOSE, note=worst))
    alarms, inputs = sum(each.alarms for each in measured.quiet), sum(each.inputs for each in measured.quiet)
    rate = alarms / inputs if inputs else math.nan
    note = f"{alarms} in {inputs} inputs; with 95 % confidence at most {at_most(alarms, inputs):.2g}"
    bars.append(Bar(measured.data, "false alarms per input", rate, _FALSE_ALARMS, note=note))
    return bars


def as_plain(measured: Measured) -> dict[str, Any]:
    """Everything, ready for JSON but for NaN."""
    return {
        "data": measured.data,
        "broken": [asdict(case) for case in measured.broken],
        "shifted": [asdict(case) for case in measured.shifted],
        "quiet": [asdict(each) for each in measured.quiet],
    }


def _behind(accuracies: Accuracies | None) -> float:
    return math.nan if accuracies is None else accuracies.without - accuracies.watched


def _by_kind(cases: Sequence[Case], cells: Callable[[Sequence[Case]], tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    """A line for each number of versions and each change."""
    for versions, change in sorted({(c.versions, c.change) for c in cases}, key=lambda kind: (kind[0], len(kind[1]))):
        of_kind = [case for case in cases if (case.versions, case.change) == (versions, change)]
        yield (str(versions), change, str(len(of_kind)), *cells(of_kind))


def _noticing(cases: Sequence[Case]) -> tuple[str, ...]:
    delays = [case.delay for case in cases if noticed(case)]
    alarmed = [case for case in cases if case.after is not None]
    return (
        str(sum(map(matters, cases))),
        percent(_mean([float(noticed(case)) for case in cases])),
        f"{median(delays):g}" if delays else "-",
        f"{max(delays):g}" if delays else "-",
        percent(_mean([float(is_right(case)) for case in alarmed])),
        percent(_mean([case.wrongly for case in cases])),
    )


def _accuracy(cases: Sequence[Case]) -> tuple[str, ...]:
    alarmed = [case.after for case in cases if case.after is not None]
    told = (_columns([case.stream for case in cases]), _columns(alarmed))
    return tuple(percent(share, 2) for columns in told for share in columns)


def _columns(accuracies: Sequence[Accuracies]) -> tuple[float, float, float]:
    watched, unwatched = [each.watched for each in accuracies], [each.unwatched for each in accuracies]
    return _mean(watched), _mean(unwatched), _mean([each.without for each in accuracies])


def _quiet(quiet: Sequence[Quiet]) -> Iterator[tuple[str, ...]]:
    for versions in sorted({each.versions for each in quiet}):
        some = [each for each in quiet if each.versions == versions]
        streams, inputs, alarms = (sum(getattr(e, name) for e in some) for name in ("streams", "inputs", "alarms"))
        rates = (f"{rate:.2g}" for rate in (alarms / inputs, at_most(alarms, inputs)))
        yield (str(versions), str(streams), str(inputs), str(alarms), *rates)


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else math.nan
