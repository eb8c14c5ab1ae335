"""What the guard has to reach, each with its figure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.decisions.ensembles import SETTINGS
from benchmarks.decisions.figures import Row, ShiftRow, rows_of, share_of, shift_rows
from benchmarks.decisions.outcomes import Outcome
from benchmarks.decisions.rules import GUARD, PAPER, STACKING, TUNED_STACKING
from benchmarks.reporting import Bar

__all__ = ["Measured", "bars_for", "figures_of"]

_NOTHING = float("nan")


@dataclass(frozen=True, slots=True)
class Measured:
    """All figures of one data set.

    Attributes:
        data: its name.
        by_versions: rows by the number of versions, over all settings and seeds.
        by_setting: rows by setting, over all numbers of versions and seeds.
        shifts: the guard under each shift.
        shift_share: of the headroom that the guard rescues over all shifts; NaN if none was measured.
    """

    data: str
    by_versions: Mapping[int, Sequence[Row]] = field(repr=False)
    by_setting: Mapping[str, Sequence[Row]] = field(repr=False)
    shifts: Sequence[ShiftRow] = field(repr=False)
    shift_share: float


def figures_of(data: str, outcomes: Sequence[Outcome]) -> Measured:
    """The figures of one data set from its outcomes."""
    usual = [each for each in outcomes if each.shift is None]
    shifted = [each for each in outcomes if each.shift is not None]
    sizes = sorted({each.versions for each in usual})
    settings = [setting for setting in SETTINGS if any(each.setting == setting for each in usual)]
    return Measured(
        data=data,
        by_versions={size: rows_of([each for each in usual if each.versions == size]) for size in sizes},
        by_setting={name: rows_of([each for each in usual if each.setting == name]) for name in settings},
        shifts=shift_rows(shifted),
        shift_share=share_of(shifted, GUARD) if shifted else _NOTHING,
    )


def bars_for(measured: Measured) -> list[Bar]:
    """All requirements on one data set, reached or not."""
    return [*_shares(measured), _worse(measured), *_under_shift(measured)]


def _shares(measured: Measured) -> Iterator[Bar]:
    for size, rows in measured.by_versions.items():
        named = {row.rule: row for row in rows}
        guard, start = named[GUARD], f"{size} versions: guard's rescue share"
        paper, stacking = (named[rule].share if rule in named else _NOTHING for rule in (PAPER, STACKING))
        note = f"paper {paper:.3f}; the guard's interval {guard.low:.3f} to {guard.high:.3f}"
        figure = guard.share if paper == paper else _NOTHING
        yield Bar(measured.data, f"{start}, beside twice the paper's", figure, max(0.0, 2 * paper), True, note)
        ahead = named[STACKING].ahead_low if STACKING in named else _NOTHING
        tuned = named[TUNED_STACKING].share if TUNED_STACKING in named else _NOTHING
        note = f"stacking {stacking:.3f}, with a chosen penalty {tuned:.3f}; the difference is at least {ahead:.3f}"
        yield Bar(measured.data, f"{start}, less that of stacking", guard.share - stacking, 0.03, True, note)


def _worse(measured: Measured) -> Bar:
    guards = [row for rows in measured.by_versions.values() for row in rows if row.rule == GUARD]
    worse, ensembles = sum(row.worse for row in guards), sum(row.ensembles for row in guards)
    share = worse / ensembles if ensembles else _NOTHING
    text = "share of ensembles in which the guard is significantly worse than the best simple rule"
    return Bar(measured.data, text, share, 0.02, note=f"{worse} of {ensembles}")


def _under_shift(measured: Measured) -> Iterator[Bar]:
    below, pairs = sum(row.below for row in measured.shifts), sum(row.ensembles for row in measured.shifts)
    kept = 1 - below / pairs if pairs else _NOTHING
    text = "under shift: share of ensembles x shifts not significantly below majority or soft vote"
    yield Bar(measured.data, text, kept, 0.95, True, f"below in {below} of {pairs}")
    each = ", ".join(f"{row.shift} {row.share:.3f}" for row in measured.shifts)
    yield Bar(measured.data, "under shift: rescue share", measured.shift_share, 0.0, True, each)
