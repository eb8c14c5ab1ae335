"""What a runtime does with a batch: ask, examine, judge."""

import threading
import time
from dataclasses import dataclass, field, replace
from typing import Final

from torch import Tensor

from deepfailguard.guard.answering import answerable
from deepfailguard.guard.asking import Answers, evidence_of
from deepfailguard.guard.places import silence
from deepfailguard.guard.verdict import FaultKind, Verdict, VersionHealth, VersionState
from deepfailguard.guard.watch_report import WatchReport
from deepfailguard.predictor.base import SettlingPredictor
from deepfailguard.runtime.base import Question
from deepfailguard.runtime.events import EventLog
from deepfailguard.runtime.examining import Finding, examine
from deepfailguard.runtime.gathering import NO_TIME, Clock, gather, gather_in_turns
from deepfailguard.runtime.member import Member
from deepfailguard.runtime.roster import Roster
from deepfailguard.runtime.settings import Settings
from deepfailguard.runtime.stuck import keys_of
from deepfailguard.runtime.tally import GuardTally, note_answers
from deepfailguard.runtime.verdicts import unanswered, verdict_on

__all__ = ["Core"]

_CHANGES: Final[dict[VersionState, str]] = {
    "serving": "recovered",
    "suspended": "suspended",
    "quarantined": "quarantined",
    "shadow": "in shadow",
}
_RESTARTED: Final[frozenset[FaultKind]] = frozenset(
    {"process died", "weights changed", "canary failed", "stuck output", "wrong output", "memory growth", "timeout"}
)
"""Faults after which a version is started anew before it is tried."""
_LEAST_RESERVE: Final = 0.002
_MOST_RESERVE: Final = 0.5  # of the deadline
_NEW: Final = 0.1  # weight of the newest batch in what judging took lately


@dataclass(slots=True)
class Core:
    """Everything that answering a batch needs; one batch at a time.

    Attributes:
        roster: who belongs to the guard now.
        settings: what is allowed and demanded.
        events: what happened.
        clock: seconds from any start, never going back.
        tally: of the guard.
        turn: held while a batch is answered.
        lock: held, for moments only, while the roster or a member's state changes.
        shadow_work: the newest batch that shadows were not asked yet: images, and the guard's labels of these.
        report: what the watch said last.
        judging: seconds that judging took lately.
        was_ready: whether enough versions served when that was told last.
    """

    roster: Roster
    settings: Settings
    events: EventLog
    clock: Clock
    tally: GuardTally = field(default_factory=GuardTally)
    turn: threading.Lock = field(default_factory=threading.Lock)
    lock: threading.RLock = field(default_factory=threading.RLock)
    shadow_work: tuple[Tensor, Tensor] | None = None
    report: WatchReport | None = None
    judging: float = 0.01
    was_ready: bool = True

    def answer(self, images: Tensor, deadline: float | None) -> Verdict:
        """The verdict on a batch (B, C, H, W), see `GuardRuntime`."""
        end = self.clock() + (self.settings.deadline if deadline is None else deadline)
        good, asked = answerable(images, self.roster.card)
        if not self.turn.acquire(timeout=max(end - self.clock(), 0.0)):
            verdict = self._no_turn(good, len(images))
        else:
            try:
                verdict = self._answer(self.roster, asked, good, len(images), end)
            finally:
                self.turn.release()
        self.tally.note(verdict)
        return verdict

    def suspend(self, member: Member, fault: FaultKind, detail: str) -> None:
        """Leave a version out until it is healthy again."""
        with self.lock:
            self.note_fault(member, fault, detail)
            if member.breaker.is_open:
                member.breaker.fail(self.clock(), fault, detail)
            else:
                member.breaker.open(self.clock(), fault, detail)
            member.restart = member.restart or fault in _RESTARTED
            self.note_change(member)

    def note_fault(self, member: Member, fault: FaultKind, detail: str) -> None:
        """Count a fault and tell of it."""
        member.tally.note_fault(fault, time.time())
        self.events.write("fault", member.name, fault, detail)

    def note_change(self, member: Member) -> None:
        """Tell of a member's state where it is another one than was told last."""
        if member.state != member.told:
            event = "released" if member.told == "quarantined" and member.usable else _CHANGES[member.state]
            kind = member.breaker.fault if member.state == "suspended" else None
            member.told, member.since = member.state, time.time()
            self.events.write(event, member.name, kind, member.reason)
        if self.ready != self.was_ready:
            self.was_ready = self.ready
            count = f"{self.serving} versions serve, at least {self.settings.least_versions} must"
            self.events.write("ready again" if self.was_ready else "not ready", detail=count)

    @property
    def serving(self) -> int:
        """How many versions serve."""
        return sum(member.state == "serving" for member in self.roster.calibrated)

    @property
    def ready(self) -> bool:
        """Whether as many versions serve as must."""
        return self.serving >= self.settings.least_versions

    def _answer(self, roster: Roster, asked: Tensor, good: Tensor, batch: int, end: float) -> Verdict:
        with self.lock:
            active = [column for column in roster.base if roster.members[column].usable]
            opened = {column: roster.members[column].breaker.opened for column in active}
            absent = {n: member.absence() for n, member in enumerate(roster.calibrated) if n not in active}
        reserve = min(max(2 * self.judging, _LEAST_RESERVE), _MOST_RESERVE * max(end - self.clock(), 0.0))
        answers = self._ask(roster, active, asked, end - reserve)
        told = dict(zip(active, answers, strict=True))
        self._examine(roster, told, keys_of(asked), end - reserve)
        start = self.clock()
        with self.lock:
            self._watch(roster, told, len(good))
            out = [n for n in active if not _counts(roster.members[n], told[n], opened[n])]
            absent |= {column: _failed(roster.members[column], told.pop(column)) for column in out}
        verdict = self._judge(roster, told, absent, good, batch)
        self.judging += _NEW * (self.clock() - start - self.judging)
        for column in active:
            note_answers(roster.members[column].tally, verdict, column)
        if any(member.shadow for member in roster.members):
            self.shadow_work = (asked, verdict.labels[good])
        return verdict

    def _ask(self, roster: Roster, active: list[int], images: Tensor, end: float) -> list[Answers]:
        members = [roster.members[column] for column in active]
        if not len(images):
            return [silence(len(roster.card.classes), 0, member.name) for member in members]
        predictor = roster.saved.predictor
        question = Question(images, predictor.needs)
        if isinstance(predictor, SettlingPredictor) and active:
            guard = roster.derived.get(active)
            if guard is not None and isinstance(guard.predictor, SettlingPredictor):
                return gather_in_turns(members, question, guard.predictor, end, self.clock)
        return gather(members, question, end, self.clock)

    def _examine(self, roster: Roster, told: dict[int, Answers], keys: Tensor, end: float) -> None:
        """Suspend the versions whose answers show that they are not sound."""
        for column, answers in told.items():
            if not answers.health.asked:
                continue
            member = roster.members[column]
            finding = examine(member, answers, keys, roster.canary, end - self.clock())
            if finding is not None and not self._pardoned(member, finding):
                self.suspend(member, finding.fault, finding.detail)

    def _pardoned(self, member: Member, finding: Finding) -> bool:
        if not finding.excused or member.pardon(self.tally.batches) > self.settings.pardons:
            return False
        self.note_fault(member, finding.fault, finding.detail)
        return True

    def _watch(self, roster: Roster, told: dict[int, Answers], inputs: int) -> None:
        """Let the watch see the answers of versions that are sound so far."""
        sound = [column for column in told if roster.members[column].usable]
        if roster.quarantine is None or not sound:
            return
        silent = silence(len(roster.card.classes), inputs)
        answers = [told[n] if n in sound else silent for n in range(len(roster.calibrated))]
        report = roster.see(evidence_of(answers, roster.saved.predictor.needs), sound)
        if report is not None:
            self.report = report
            self.tell_watch(roster, report)

    def tell_watch(self, roster: Roster, report: WatchReport) -> None:
        """Let the members know whom the watch set apart."""
        apart = {each.version: each for each in report.quarantined}
        for column, member in enumerate(roster.calibrated):
            if column not in apart:
                member.apart = ""
            elif not member.apart:
                reasons = "; ".join(str(alarm).removeprefix(f"{alarm.name} ") for alarm in report.of(column))
                member.apart = f"set apart by the watch since input {apart[column].since}: it {reasons}"
            self.note_change(member)

    def _judge(
        self, roster: Roster, told: dict[int, Answers], others: dict[int, VersionHealth], good: Tensor, batch: int
    ) -> Verdict:
        try:
            return verdict_on(roster, told, others, good, batch, self.settings)
        except Exception as error:  # whatever a predictor does with strange evidence: never lie, say so
            self.events.write("judging failed", detail=f"{type(error).__name__}: {error}")
            health = {column: answers.health for column, answers in told.items()} | others
            return unanswered(roster, health, good, batch, self.settings)

    def _no_turn(self, good: Tensor, batch: int) -> Verdict:
        """The verdict where the batches before it took all the time there was."""
        problem = "it was not asked: the batches before this one took until the deadline"
        names = self.roster.card.names
        health = {n: VersionHealth(name, 0, 0, problem, "timeout") for n, name in enumerate(names)}
        self.events.write("no turn", detail=f"{batch} inputs were not answered: the batches before took all the time")
        return unanswered(self.roster, health, good, batch, self.settings)


def _counts(member: Member, answers: Answers, opened: int) -> bool:
    """Whether answers count; `opened` tells how often the breaker had opened when they were asked for.

    A version may be found corrupted, repaired and sound again while others are still waited for.
    """
    return member.usable and member.breaker.opened == opened and answers.health.problem != NO_TIME


def _failed(member: Member, answers: Answers) -> VersionHealth:
    """Health of a version whose answers came and do not count, or that could not be asked any more."""
    if answers.health.problem == NO_TIME:
        return answers.health
    if member.usable:
        why = "a fault was found while it was asked; it was repaired since"
        return replace(member.absence(), asked=answers.health.asked, problem=why, fault=member.tally.fault)
    return replace(member.absence(), asked=answers.health.asked)
