"""From judged versions to tables and bars."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Final

from benchmarks.failing.measuring import PREDICTORS, TOGETHER, UNREHEARSED, Judged, mean_of
from benchmarks.failing.single_scores import AGREEMENT
from benchmarks.reporting import Bar, aligned, percent

__all__ = ["Wins", "as_plain", "bars_for", "judge_lines", "version_lines", "wins_of"]

_HEAD: Final = ("judge", "versions", "AUROC %", "AURC %", "excess %", "FPR95 %", "ECE %", "(by chance)", "AUROC ahead")
_VERSION_HEAD: Final = ("fault", "versions", "wrong %", "AUROC won", "AURC won", "both won", "AUROC %", "best single %")
_WINS: Final = 0.9
_ECE: Final = 0.02


@dataclass(frozen=True, slots=True)
class Wins:
    """On which versions a predictor is better than every single score: one flag for each version.

    Attributes:
        auroc: in AUROC.
        aurc: in AURC.
    """

    auroc: tuple[bool, ...]
    aurc: tuple[bool, ...]

    @property
    def both(self) -> tuple[bool, ...]:
        """In both."""
        return tuple(one and other for one, other in zip(self.auroc, self.aurc, strict=True))


def wins_of(judged: Sequence[Judged], predictor: str) -> Wins:
    """On which versions a predictor wins, of those that were both right and wrong."""
    there = _tellable(judged)
    auroc, aurc = (tuple(_beats(each, predictor, measure) for each in there) for measure in ("auroc", "aurc"))
    return Wins(auroc, aurc)


def judge_lines(judged: Sequence[Judged]) -> list[str]:
    """A table: one line for each judge, the means over the versions."""
    names = dict.fromkeys([*PREDICTORS, UNREHEARSED, *(name for each in judged for name in each.measures)])
    return aligned([_HEAD, *(_judge_cells(name, judged) for name in names)])


def version_lines(judged: Sequence[Judged]) -> list[str]:
    """A table: one line for each fault, what the joint predictor wins in ensembles of three."""
    faults = list(dict.fromkeys(each.fault for each in judged))
    lines = [_fault_cells(fault or "sound", [e for e in judged if e.fault == fault]) for fault in faults]
    return aligned([_VERSION_HEAD, *lines, _fault_cells("all", judged)])


def bars_for(data: str, judged: Sequence[Judged]) -> list[Bar]:
    """What has to be reached: by the joint predictor in ensembles, and by both predictors alone."""
    return [bar for predictor in PREDICTORS for bar in _bars(data, judged, predictor)]


def as_plain(data: str, judged: Sequence[Judged]) -> dict[str, Any]:
    """Everything, ready for JSON but for NaN."""
    return {"data": data, "versions": [asdict(each) for each in judged]}


def _bars(data: str, judged: Sequence[Judged], predictor: str) -> Iterator[Bar]:
    wins = wins_of(judged, predictor)
    count = len(wins.both)
    own = "" if predictor == TOGETHER else " of the version"
    text = f"{predictor}: share of versions with AUROC and AURC better than every single score{own}"
    note = f"AUROC {sum(wins.auroc)}, AURC {sum(wins.aurc)}, both {sum(wins.both)} of {count}"
    figure = sum(wins.both) / count if count else float("nan")
    yield Bar(data, text, figure, _WINS, True, note)
    told = [each.measures[predictor] for each in judged]
    mean = mean_of(told)
    note = f"a perfect predictor shows {mean.chance_ece:.4f} by chance; worst version {max(m.ece for m in told):.4f}"
    yield Bar(data, f"{predictor}: ECE, mean over versions", mean.ece, _ECE, note=note)


def _tellable(judged: Sequence[Judged]) -> list[Judged]:
    """The versions of which there are right and wrong answers: nobody can be better on the others."""
    return [each for each in judged if each.measures[TOGETHER].auroc == each.measures[TOGETHER].auroc]


def _rivals(judged: Judged, predictor: str) -> list[str]:
    """The single scores, which tell no probability, that see no more than the predictor: alone it sees no agreement."""
    scores = [name for name, told in judged.measures.items() if math.isnan(told.ece)]
    return [name for name in scores if name != AGREEMENT or predictor in (TOGETHER, UNREHEARSED)]


def _beats(judged: Judged, predictor: str, measure: str) -> bool:
    value: Callable[[str], float] = lambda name: getattr(judged.measures[name], measure)  # noqa: E731
    rivals = [value(name) for name in _rivals(judged, predictor)]
    return value(predictor) > max(rivals) if measure == "auroc" else value(predictor) < min(rivals)


def _judge_cells(name: str, judged: Sequence[Judged]) -> tuple[str, ...]:
    there = [each for each in _tellable(judged) if name in each.measures]
    mean = mean_of([each.measures[name] for each in there])
    shares = (percent(getattr(mean, key), 2) for key in ("auroc", "aurc", "excess", "fpr95", "ece", "chance_ece"))
    ahead = sum(each.measures[name].auroc > each.measures[TOGETHER].auroc for each in there)
    return (name, str(len(there)), *shares, "" if name == TOGETHER else str(ahead))


def _fault_cells(name: str, judged: Sequence[Judged]) -> tuple[str, ...]:
    there, wins = _tellable(judged), wins_of(judged, TOGETHER)
    if not there:
        return (name, "0", *["-"] * (len(_VERSION_HEAD) - 2))
    mine = fmean(each.measures[TOGETHER].auroc for each in there)
    best = fmean(max(each.measures[rival].auroc for rival in _rivals(each, TOGETHER)) for each in there)
    counts = (str(sum(each)) for each in (wins.auroc, wins.aurc, wins.both))
    wrong = fmean(each.error_rate for each in there)
    return (name, str(len(there)), percent(wrong), *counts, percent(mine, 2), percent(best, 2))
