"""Finding out whether a version is sound: by its answers, and by canary inputs where these leave doubt."""

from dataclasses import dataclass
from typing import Final

from torch import Tensor

from deepfailguard.guard.asking import Answers
from deepfailguard.guard.canary import logits_told, mismatch
from deepfailguard.guard.verdict import FaultKind
from deepfailguard.runtime.base import Question
from deepfailguard.runtime.gathering import ask_within
from deepfailguard.runtime.member import Member
from deepfailguard.types import NO_ANSWER

__all__ = ["Finding", "canary_problem", "examine", "judge_canary"]

_PLAIN: Final = frozenset({"timeout", "process died", "wrong output"})
"""Faults that no input excuses."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with a version.

    Attributes:
        fault: its kind.
        detail: in words.
        excused: whether it is the inputs': the version passes the canary.
    """

    fault: FaultKind
    detail: str
    excused: bool = False


def examine(member: Member, answers: Answers, keys: Tensor, canary: Tensor, seconds: float) -> Finding | None:
    """Whether something is wrong with a version that gave these answers; None if nothing is.

    An exception, output that is not finite, or the same output for different inputs may come from the inputs. Then the
    version is asked the canary inputs at once: if it passes, its other answers count.

    Args:
        member: the version.
        answers: to G inputs.
        keys: (G,) int64 of the inputs, see `keys_of`.
        canary: (M, C, H, W).
        seconds: that the canary may take.
    """
    fault, detail = answers.health.fault, answers.health.problem
    if fault in _PLAIN:
        return Finding(fault, detail)
    stuck = member.stuck.suspects(keys, answers.logits, answers.distances.labels != NO_ANSWER)
    if fault is None and not stuck:
        return None
    failed = canary_problem(member, canary, seconds)
    if not failed:
        return None if fault is None else Finding(fault, f"{detail}; it passes the canary inputs", excused=True)
    kind: FaultKind = fault if fault is not None else "stuck output"
    return Finding(kind, "; ".join(filter(None, (detail, f"on canary inputs: {failed}"))))


def canary_problem(member: Member, canary: Tensor, seconds: float) -> str:
    """What is wrong with a version's answers to the canary inputs; empty if nothing is."""
    answers = ask_within(member, Question(canary, measured=False), seconds)
    return judge_canary(member, answers)


def judge_canary(member: Member, answers: Answers) -> str:
    """What is wrong with these answers to the canary inputs; empty if nothing is."""
    if answers.health.fault is not None or not answers.health.asked:
        return answers.health.problem
    return "" if member.expected is None else mismatch(member.expected, logits_told(answers))
