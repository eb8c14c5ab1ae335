"""Asking several versions with one deadline: who is late is left out, and nobody pays for the others' time."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Final

from torch import Tensor

from deepfailguard.errors import VersionLostError
from deepfailguard.guard.asking import Answers, no_answers
from deepfailguard.guard.turns import ask_in_turns
from deepfailguard.guard.verdict import FaultKind, VersionHealth
from deepfailguard.predictor.base import SettlingPredictor
from deepfailguard.runtime.base import Question
from deepfailguard.runtime.member import Member

__all__ = ["NO_TIME", "Clock", "ask_within", "gather", "gather_in_turns"]

Clock = Callable[[], float]

NO_TIME: Final = "it was not asked: there was not enough time left until the deadline"


@dataclass(slots=True)
class _Call:
    """An answer that is on its way, and how long it took."""

    future: "Future[Answers]"
    started: float = field(default_factory=time.perf_counter)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.future.add_done_callback(self._stop)

    def _stop(self, _: object) -> None:
        self.seconds = time.perf_counter() - self.started


def gather(members: Sequence[Member], question: Question, end: float, clock: Clock) -> list[Answers]:
    """The answers of all members, by `end` of the clock.

    Those that run beside one another have all the time there is. Those that take turns share it: each may take an
    equal part of what the ones before it have left, but no more than twice its part of all.
    """
    given = end - clock()
    beside = {m.name: _call(m, question) for m in members if m.runner.parallel and _is_enough(m, given)}
    in_turn = [m for m in members if not m.runner.parallel]
    told = {}
    for number, member in enumerate(in_turn):
        left = end - clock()
        share = min(left / (len(in_turn) - number), 2 * given / len(in_turn))
        told[member.name] = ask_within(member, question, share)
    for member in members:
        if member.runner.parallel and member.name not in beside:
            told[member.name] = _not_asked(member, question)
        elif member.runner.parallel:
            told[member.name] = _wait(member, beside[member.name], question, end - clock(), given)
    return [told[member.name] for member in members]


def gather_in_turns(
    members: Sequence[Member], question: Question, predictor: SettlingPredictor, end: float, clock: Clock
) -> list[Answers]:
    """The answers of all members, each asked only about the images that the ones before it have not settled."""
    left = list(members)

    def asker(needed: Tensor) -> Answers:
        seconds = (end - clock()) / len(left)
        return ask_within(left.pop(0), replace(question, images=needed), seconds)

    return ask_in_turns([asker] * len(members), question.images, predictor, question.needs)


def ask_within(member: Member, question: Question, seconds: float) -> Answers:
    """One member's answers within so many seconds; if these are too few it is not asked, and not to blame."""
    if not _is_enough(member, seconds):
        return _not_asked(member, question)
    return _wait(member, _call(member, question), question, seconds, seconds)


def _is_enough(member: Member, seconds: float) -> bool:
    """Whether a version that is as fast as ever can answer within so many seconds."""
    usual = member.tally.quantile(0.5)
    return seconds > 0 and not seconds <= usual  # it is NaN before the first answer


def _not_asked(member: Member, question: Question) -> Answers:
    answers = _failed(member, question, "", None)
    return replace(answers, health=VersionHealth(member.name, 0, 0, NO_TIME))


def _call(member: Member, question: Question) -> _Call:
    try:
        return _Call(member.runner.ask(question))
    except Exception as error:  # a runner must not raise here; whoever wrote it, the others go on
        failed: Future[Answers] = Future()
        failed.set_exception(error)
        return _Call(failed)


def _wait(member: Member, call: _Call, question: Question, seconds: float, given: float) -> Answers:
    try:
        answers = call.future.result(max(seconds, 0.0))
    except Exception as error:
        if isinstance(error, TimeoutError) and not call.future.done():
            member.runner.abandon()
            return _failed(member, question, f"gave no answer within {given:.3g} s", "timeout")
        fault: FaultKind = "process died" if isinstance(error, VersionLostError) else "exception"
        return _failed(member, question, f"{type(error).__name__}: {error}", fault)
    member.tally.note_seconds(call.seconds)
    return answers


def _failed(member: Member, question: Question, problem: str, fault: FaultKind | None) -> Answers:
    return no_answers(member.name, member.classes, len(question.images), problem, fault)
