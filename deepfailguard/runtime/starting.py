"""Starting versions, and finding out whether they are sound before they count."""

from collections.abc import Sequence

from deepfailguard.errors import VersionLostError
from deepfailguard.guard.canary import logits_told
from deepfailguard.guard.verdict import FaultKind
from deepfailguard.runtime.base import Question
from deepfailguard.runtime.core import Core
from deepfailguard.runtime.examining import judge_canary
from deepfailguard.runtime.member import Member

__all__ = ["start_members"]


def start_members(core: Core, members: Sequence[Member]) -> None:
    """Start versions beside one another and try each on the canary inputs; who fails is suspended."""
    until = core.clock() + core.settings.start_seconds
    started = [member.runner.start() for member in members]
    for member, future in zip(members, started, strict=True):
        try:
            future.result(max(until - core.clock(), 0.0))
            answers = member.runner.ask(Question(core.roster.canary, measured=False))
            told = answers.result(max(until - core.clock(), 0.0))
        except Exception as error:
            core.suspend(member, *_fault(member, error, core.settings.start_seconds))
            member.restart = True
            continue
        problem = judge_canary(member, told)
        if problem:
            core.suspend(member, "canary failed", problem)
        elif member.expected is None:
            member.expected = logits_told(told).float()
        member.memory = member.runner.memory()
        member.next_canary = core.clock() + core.settings.canary_every


def _fault(member: Member, error: Exception, seconds: float) -> tuple[FaultKind, str]:
    if isinstance(error, TimeoutError):
        member.runner.abandon()
        return "timeout", f"it did not start within {seconds:.3g} s"
    kind: FaultKind = "process died" if isinstance(error, VersionLostError) else "exception"
    return kind, f"it could not be started: {error}"
