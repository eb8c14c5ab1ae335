"""What happens beside answering: probes, restarts, checks of weights and memory, shadows."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final

from torch import Tensor

from deepfailguard.errors import CorruptFileError, VersionLostError
from deepfailguard.guard.asking import Answers
from deepfailguard.guard.canary import logits_told
from deepfailguard.guard.verdict import FaultKind
from deepfailguard.runtime.base import Question
from deepfailguard.runtime.core import Core
from deepfailguard.runtime.examining import judge_canary
from deepfailguard.runtime.member import Member, Pending, Purpose
from deepfailguard.runtime.stuck import keys_of
from deepfailguard.types import NO_ANSWER

__all__ = ["Upkeep"]

_STEP: Final = 0.02
_WEIGHTS: Final = 0.0005  # seconds of comparing at a time: no answer waits longer for it
_PATIENCE: Final = 1.0  # that comparing waits for a version which is busy
_MEMORY_EVERY: Final = 1.0
_SAVE_EVERY: Final = 10.0

logger = logging.getLogger(__name__)


class Upkeep:
    """Looks after the versions of a runtime, step by step; a thread makes the steps.

    A version that is suspended is started anew where its fault wants that, and tried on canary inputs; if it passes
    it serves again. One that serves is compared with its weights all the time, within a share of the time, and tried
    on canary inputs now and then. Shadows are asked what was just answered.

    Args:
        core: of the runtime.
        save: keeps the state for the time after a restart.
    """

    def __init__(self, core: Core, save: Callable[[], None]) -> None:
        self.core = core
        self.save = save
        self._credit = 0.0
        self._compared: dict[str, float] = {}
        self._last = core.clock()
        self._shadowed: dict[str, tuple[Tensor, Tensor]] = {}
        self._next_memory = self._last
        self._next_save = self._last + _SAVE_EVERY
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Make steps in a thread from now on."""
        self._thread = threading.Thread(target=self._run, name="upkeep", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Make no more steps."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(10.0)

    def step(self) -> None:
        """Do what is due now; waits for nothing."""
        now = self.core.clock()
        members = self.core.roster.members
        for member in members:
            self._look_after(member, now)
        self._compare_weights(members, now)
        if now >= self._next_memory:
            self._next_memory = now + _MEMORY_EVERY
            for member in members:
                self._check_memory(member)
        if now >= self._next_save:
            self._next_save = now + _SAVE_EVERY
            self.save()
        self._ask_shadows()

    def _run(self) -> None:
        while not self._stop.wait(_STEP):
            try:
                self.step()
            except Exception:  # the guard answers on, and the next step may fare better
                logger.exception("a step of the upkeep failed")

    def _look_after(self, member: Member, now: float) -> None:
        pending = member.pending
        if pending is None:
            self._begin(member, now)
        elif pending.future.done():
            member.pending = None
            self._finish(member, pending, now)
        elif now > pending.until:
            member.pending = None
            member.runner.abandon()
            told = f"{_NAMES[pending.what]} took longer than {pending.seconds:.3g} s"
            self.core.suspend(member, "timeout", told)

    def _begin(self, member: Member, now: float) -> None:
        """Start what is due for a version."""
        settings = self.core.settings
        if member.breaker.is_due(now):
            if member.restart:
                member.tally.restarts += 1
                self.core.events.write("restarting", member.name, detail=member.reason)
                self._wait(member, "start", member.runner.start(), settings.start_seconds)
            elif not member.runner.busy:
                self._try_canary(member)
        elif member.usable and settings.canary_every and now >= member.next_canary and not member.runner.busy:
            member.next_canary = now + settings.canary_every
            self._try_canary(member)

    def _try_canary(self, member: Member) -> None:
        """Who was tried in vain is given more time each time: a first answer may be slow, and a restart makes it so."""
        settings, breaker = self.core.settings, member.breaker
        patience = breaker.wait / breaker.first if breaker.is_open and breaker.first > 0 else 1.0
        future = member.runner.ask(Question(self.core.roster.canary, measured=False))
        self._wait(member, "canary", future, min(max(patience, 1.0) * settings.deadline, settings.start_seconds))

    def _wait(self, member: Member, what: Purpose, future: "Future[Any]", seconds: float | None = None) -> None:
        """Hear of it in a later step."""
        allowed = self.core.settings.deadline if seconds is None else seconds
        member.pending = Pending(what, future, self.core.clock() + allowed, allowed, member.breaker.opened)

    def _finish(self, member: Member, pending: Pending, now: float) -> None:
        """Act on what came of something that was waited for, if no fault came in between: then it tells nothing."""
        if pending.opened != member.breaker.opened:
            return
        try:
            result = pending.future.result()
        except Exception as error:
            if pending.what == "weights":  # that says nothing of weights; the next question will find out more
                return
            fault: FaultKind = _KINDS.get(type(error), "exception")
            member.restart = True
            self.core.suspend(member, fault, f"{_NAMES[pending.what]} failed: {error}")
            return
        if pending.what == "start":
            member.restart = False
            member.stuck.forget()
            member.memory = member.runner.memory()
            self._try_canary(member)
        elif pending.what == "canary":
            self._judge(member, result, now)
        elif pending.what == "shadow":
            self._note_shadow(member, result)
        elif result:
            self.core.suspend(member, "weights changed", f"tensors changed since they were loaded: {_some(result)}")

    def _judge(self, member: Member, answers: Answers, now: float) -> None:
        problem = judge_canary(member, answers)
        if problem:
            member.restart = True
            self.core.suspend(member, "canary failed", problem)
            return
        if member.expected is None:
            member.expected = logits_told(answers).float()
        with self.core.lock:
            if member.breaker.is_open and not member.restart:
                member.breaker.close(now)
                member.next_canary = now + self.core.settings.canary_every
                self.core.note_change(member)

    def _compare_weights(self, members: tuple[Member, ...], now: float) -> None:
        """Go on with the version that was not compared for longest, as far as the share of the time allows."""
        self._credit = min(self._credit + self.core.settings.upkeep_share * (now - self._last), 10 * _WEIGHTS)
        self._last = now
        waiting = [member for member in members if member.usable and member.pending is None]
        if self._credit < _WEIGHTS or not waiting:
            return
        waiting.sort(key=lambda member: self._compared.get(member.name, 0.0))
        member = next((member for member in waiting if not member.runner.busy), waiting[0])
        if member.runner.busy and now < self._compared.get(member.name, 0.0) + _PATIENCE:
            return
        self._credit -= _WEIGHTS
        self._compared[member.name] = now
        self._wait(member, "weights", member.runner.check_weights(_WEIGHTS), _PATIENCE + self.core.settings.deadline)

    def _check_memory(self, member: Member) -> None:
        most, now = self.core.settings.memory_growth, member.runner.memory()
        if not most or now is None or not member.usable:
            return
        if member.memory is None:
            member.memory = now
        elif now > member.memory + most:
            grown = f"its process grew from {member.memory / 2**20:.0f} to {now / 2**20:.0f} MiB"
            self.core.suspend(member, "memory growth", grown)

    def _ask_shadows(self) -> None:
        """Ask shadows what was answered last; whatever they say counts for nothing but their statistics."""
        work, self.core.shadow_work = self.core.shadow_work, None
        if work is None or not len(work[0]):
            return
        images, labels = work
        roster = self.core.roster
        for member in roster.members:
            if member.shadow and member.usable and member.pending is None and not member.runner.busy:
                question = Question(images, roster.saved.predictor.needs, measured=False)
                self._wait(member, "shadow", member.runner.ask(question))
                self._shadowed[member.name] = (keys_of(images), labels.cpu())

    def _note_shadow(self, member: Member, answers: Answers) -> None:
        keys, labels = self._shadowed.pop(member.name)
        told = answers.distances.labels
        member.tally.asked += len(told)
        member.tally.answered += int((told != NO_ANSWER).sum())
        both = (told != NO_ANSWER) & (labels != NO_ANSWER)
        member.tally.disagreement.add(told[both] != labels[both])
        if answers.health.fault is not None:
            self.core.suspend(member, answers.health.fault, answers.health.problem)
        elif member.stuck.suspects(keys, answers.logits, told != NO_ANSWER):
            member.next_canary = self.core.clock()  # it is tried at once


_KINDS: Final[dict[type[Exception], FaultKind]] = {
    VersionLostError: "process died",
    CorruptFileError: "weights changed",
}
_NAMES: Final[dict[Purpose, str]] = {
    "start": "starting it",
    "canary": "trying it on canary inputs",
    "weights": "comparing its weights",
    "shadow": "asking it",
}


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
