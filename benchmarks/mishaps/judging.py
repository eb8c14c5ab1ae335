"""What clients were told while something was broken: right, in time, and honest about who was missing?"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from torch import Tensor

from benchmarks.mishaps.loading import Request
from benchmarks.mishaps.patients import is_out
from benchmarks.mishaps.references import References, counted
from deepfailguard.guard.verdict import Verdict
from deepfailguard.types import NO_ANSWER

__all__ = ["TOLERANCE", "Broken", "Tale", "tell"]

TOLERANCE: Final = 0.1
"""Seconds beyond its deadline that a request may take, for the scheduler of a busy machine."""


@dataclass(frozen=True, slots=True)
class Broken:
    """A version that was broken.

    Attributes:
        column: its position.
        since: when, seconds of `time.monotonic`.
        noticed: the first request that shows that the runtime noticed; None if none does.
    """

    column: int
    since: float
    noticed: Request | None


@dataclass(frozen=True, slots=True)
class Tale:
    """What became of the requests of a trial.

    Attributes:
        requests: how many.
        inputs: in all of them.
        lost: requests that got no verdict.
        errors: what they got.
        late: requests that took longer than their deadline and the tolerance.
        overshoot: seconds beyond the deadline of the latest; 0 if none was late at all.
        unanswered: requests that no version answered.
        undegraded: verdicts that lack a version's answer and do not say so.
        exposed: requests that counted answers of a broken version before it was noticed.
        begun: those of them that were made after it was broken.
        exposed_answers: answers in these that a sound version would not have given.
        exposed_labels: of the guard in these, likewise.
        wrong: labels that are not those of exactly the versions that the verdict says have answered, where no version
            was broken unnoticed.
        relapsed: requests that counted false answers of a version after it was noticed.
        bystanders: names of faults for which sound versions were left out.
    """

    requests: int
    inputs: int
    lost: int
    errors: tuple[str, ...]
    late: int
    overshoot: float
    unanswered: int
    undegraded: int
    exposed: int
    begun: int
    exposed_answers: int
    exposed_labels: int
    wrong: int
    relapsed: int
    bystanders: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Judged:
    """One request with a verdict."""

    exposed: bool
    begun: bool
    answers: int
    labels: int
    relapsed: bool


def tell(requests: Sequence[Request], references: References, broken: Sequence[Broken]) -> Tale:
    """Hold what clients were told against what they must be told.

    Args:
        requests: in the order in which they ended.
        references: labels of the guards of all subsets.
        broken: versions.
    """
    judged = [_judge(request, number, requests, references, broken) for number, request in enumerate(requests)]
    sound = [each for each in judged if each is not None]
    verdicts = [request.verdict for request in requests if request.verdict is not None]
    exposed = [each for each in sound if each.exposed]
    return Tale(
        requests=len(requests),
        inputs=sum(len(request.rows) for request in requests),
        lost=len(requests) - len(verdicts),
        errors=tuple(sorted({request.error for request in requests if request.error})),
        late=sum(request.overshoot > TOLERANCE for request in requests),
        overshoot=max([0.0, *(request.overshoot for request in requests)]),
        unanswered=sum(not counted(verdict) for verdict in verdicts),
        undegraded=sum(_lacks(verdict) and not verdict.degraded for verdict in verdicts),
        exposed=len(exposed),
        begun=sum(each.begun for each in exposed),
        exposed_answers=sum(each.answers for each in exposed),
        exposed_labels=sum(each.labels for each in exposed),
        wrong=sum(each.labels for each in sound if not each.exposed),
        relapsed=sum(each.relapsed for each in sound),
        bystanders=_bystanders(requests, {each.column for each in broken}),
    )


def _judge(
    request: Request, number: int, requests: Sequence[Request], references: References, broken: Sequence[Broken]
) -> _Judged | None:
    verdict = request.verdict
    if verdict is None:
        return None
    counts, false = counted(verdict), references.false_answers(verdict, request.rows)
    suspects = [each for each in broken if each.column in counts and _unnoticed(each, request, number, requests)]
    answers = int(false[:, [each.column for each in suspects]].sum())
    others = [column for column in range(false.shape[1]) if column not in {each.column for each in suspects}]
    return _Judged(
        exposed=bool(suspects),
        begun=any(request.start > each.since for each in suspects),
        answers=answers,
        labels=_differing(verdict, references.expected(verdict, request.rows)),
        relapsed=bool(false[:, others].any()),
    )


def _unnoticed(each: Broken, request: Request, number: int, requests: Sequence[Request]) -> bool:
    """Whether a version was broken when a request ended, and nothing had shown it before."""
    if request.end <= each.since:
        return False
    return each.noticed is None or all(earlier is not each.noticed for earlier in requests[: number + 1])


def _differing(verdict: Verdict, expected: Tensor) -> int:
    """Labels that are others, or are given as sure where there is none."""
    unsure = (expected == NO_ANSWER) & ~verdict.abstained
    return int(((verdict.labels != expected) | unsure).sum())


def _lacks(verdict: Verdict) -> bool:
    silent = (verdict.version_labels == NO_ANSWER).any() if len(verdict) else False
    return bool(silent) or any(health.state != "serving" for health in verdict.health)


def _bystanders(requests: Sequence[Request], broken: set[int]) -> tuple[str, ...]:
    """The faults for which versions were left out that nobody had broken, once for each time."""
    verdicts = [request for request in requests if request.verdict is not None]
    columns = range(len(verdicts[0].verdict.health)) if verdicts and verdicts[0].verdict is not None else ()
    faults: list[str] = []
    for column in (column for column in columns if column not in broken):
        for out, run in itertools.groupby(verdicts, lambda request: is_out(request, column)):  # noqa: B023
            verdict = next(run).verdict
            if out and verdict is not None:
                faults.append(str(verdict.health[column].fault))
    return tuple(faults)
