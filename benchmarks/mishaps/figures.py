"""Figures of a class of faults, and what must hold of them."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np
import torch

from benchmarks.mishaps.judging import TOLERANCE, Tale
from benchmarks.mishaps.trials import Outcome
from deepfailguard.evaluation.intervals import binomial_interval

__all__ = ["Claim", "ClassRun", "Figures", "as_plain", "claims_of", "figures_of", "miss_rate"]

_LEVEL: Final = 0.95
_SHOWN: Final = 20  # trials that are told one by one


@dataclass(frozen=True, slots=True)
class ClassRun:
    """The trials of a class of faults.

    Attributes:
        name: of the class.
        group: of classes.
        promise: how soon it must be noticed, in words; empty where nothing is expected to notice it.
        limit: seconds of the promise; NaN if it is a matter of requests.
        outcomes: of the trials.
        failures: what failed inside of the guard, or of its clients, in words.
        repeated: trials that were made again, since a sound version was left out as they began.
        events: how often the runtime wrote each event.
        seconds: that the class took.
        busy: processes of the whole machine that ran or wanted to, in the last minute.
    """

    name: str
    group: str
    promise: str
    limit: float
    outcomes: tuple[Outcome, ...]
    failures: tuple[str, ...]
    repeated: int
    events: dict[str, int]
    seconds: float
    busy: float


@dataclass(frozen=True, slots=True)
class Figures:
    """A class of faults in numbers; times in seconds, NaN where nothing is to be told.

    Attributes:
        trials: how many faults were injected; each may hit several versions.
        detected: trials in which all versions that were hit were noticed.
        missed: trials in which one was not, or not as soon as promised.
        rate: largest rate of misses that is compatible with that, one-sided at 95 %.
        interval: two-sided Clopper-Pearson interval of the rate of misses at 95 %.
        latency: median, 95 % and largest, from the injection to the end of the first request without the version.
        faults: how often the runtime called it what.
        recovered: trials after which all versions served again.
        recovery: median, 95 % and largest.
        tale: sums over the requests of all trials; the largest of the overshoots.
    """

    trials: int
    detected: int
    missed: int
    rate: float
    interval: tuple[float, float]
    latency: tuple[float, float, float]
    faults: dict[str, int]
    recovered: int
    recovery: tuple[float, float, float]
    tale: Tale


@dataclass(frozen=True, slots=True)
class Claim:
    """Something that must hold of a class of faults.

    Attributes:
        name: of the claim.
        holds: whether it does.
        told: the figures that say so.
    """

    name: str
    holds: bool
    told: str


def miss_rate(missed: int, trials: int) -> tuple[float, tuple[float, float]]:
    """The one-sided 95 % bound and the two-sided 95 % interval of a rate, after Clopper and Pearson.

    >>> bound, (low, high) = miss_rate(0, 300)
    >>> f"{bound:.4f} {low:.4f} {high:.4f}"
    '0.0099 0.0000 0.0122'
    """
    hits, of = torch.tensor([missed]), torch.tensor([trials])
    low, high = binomial_interval(hits, of, level=_LEVEL)
    _, bound = binomial_interval(hits, of, level=1 - 2 * (1 - _LEVEL))
    return float(bound), (float(low), float(high))


def figures_of(run: ClassRun) -> Figures:
    """The figures of a class with one trial at least."""
    outcomes = run.outcomes
    missed = sum(not outcome.kept for outcome in outcomes)
    rate, interval = miss_rate(missed, len(outcomes))
    return Figures(
        trials=len(outcomes),
        detected=sum(outcome.detected for outcome in outcomes),
        missed=missed,
        rate=rate,
        interval=interval,
        latency=_spread([outcome.latency for outcome in outcomes]),
        faults=dict(Counter(fault for outcome in outcomes for fault in outcome.faults)),
        recovered=sum(outcome.recovered for outcome in outcomes),
        recovery=_spread([outcome.recovery for outcome in outcomes if outcome.tale is not None]),
        tale=_summed([outcome.tale for outcome in outcomes if outcome.tale is not None]),
    )


def claims_of(run: ClassRun) -> list[Claim]:
    """What must hold of a class, and whether it does."""
    figures = figures_of(run)
    tale, trials = figures.tale, figures.trials
    soon = f"{figures.missed} of {trials} missed ({run.promise}); latency {figures.latency[2]:.3g} s at most"
    claims = [Claim("noticed as soon as promised", figures.missed == 0, soon)] if run.promise else []
    if not any(outcome.tale for outcome in run.outcomes):
        return claims
    return [
        *claims,
        Claim("no wrong answer of a fault that was noticed", tale.wrong == 0, f"{tale.wrong} wrong labels"),
        Claim("no answer of a version that was left out", tale.relapsed == 0, f"{tale.relapsed} requests counted one"),
        Claim("no request lost", tale.lost == 0, f"{tale.lost} of {tale.requests} lost {'; '.join(tale.errors)}"),
        Claim(
            "no request beyond its deadline",
            tale.late == 0,
            f"{tale.late} of {tale.requests} more than {TOLERANCE} s late, the latest by {tale.overshoot:.3g} s",
        ),
        Claim("degraded whenever a version is missing", tale.undegraded == 0, f"{tale.undegraded} were not"),
        Claim("all versions serve again", figures.recovered == trials, f"{figures.recovered} of {trials} did"),
        Claim("nothing failed inside of the guard", not run.failures, "; ".join(run.failures) or "nothing did"),
    ]


def as_plain(run: ClassRun) -> dict[str, Any]:
    """Everything that was measured, ready for JSON but for NaN."""
    figures = figures_of(run)
    return {
        **{
            name: getattr(run, name)
            for name in ("name", "group", "promise", "limit", "repeated", "events", "seconds", "busy")
        },
        "failures": list(run.failures),
        **_lists(asdict(figures)),
        "claims": [asdict(claim) for claim in claims_of(run)],
        "remarkable": [_lists(asdict(outcome)) for outcome in run.outcomes if _is_remarkable(outcome, run)][:_SHOWN],
    }


def _is_remarkable(outcome: Outcome, run: ClassRun) -> bool:
    """Whether a trial is against a claim."""
    alone = replace(run, outcomes=(outcome,), failures=())
    return not all(claim.holds for claim in claims_of(alone))


def _spread(seconds: Sequence[float]) -> tuple[float, float, float]:
    """Median, 95 % and largest of those that are known."""
    known = [each for each in seconds if not math.isnan(each)]
    if not known:
        return math.nan, math.nan, math.nan
    return float(np.quantile(known, 0.5)), float(np.quantile(known, 0.95)), max(known)


def _summed(tales: Sequence[Tale]) -> Tale:
    def total(count: Callable[[Tale], int]) -> int:
        return sum(map(count, tales))

    return Tale(
        requests=total(lambda tale: tale.requests),
        inputs=total(lambda tale: tale.inputs),
        lost=total(lambda tale: tale.lost),
        errors=tuple(sorted({error for tale in tales for error in tale.errors})),
        late=total(lambda tale: tale.late),
        overshoot=max([0.0, *(tale.overshoot for tale in tales)]),
        unanswered=total(lambda tale: tale.unanswered),
        undegraded=total(lambda tale: tale.undegraded),
        exposed=total(lambda tale: tale.exposed),
        begun=total(lambda tale: tale.begun),
        exposed_answers=total(lambda tale: tale.exposed_answers),
        exposed_labels=total(lambda tale: tale.exposed_labels),
        wrong=total(lambda tale: tale.wrong),
        relapsed=total(lambda tale: tale.relapsed),
        bystanders=tuple(fault for tale in tales for fault in tale.bystanders),
    )


def _lists(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _lists(value) for key, value in content.items()}
    return [_lists(each) for each in content] if isinstance(content, (list, tuple)) else content
