"""All rules side by side: each answers from the same evidence."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from benchmarks.decisions.agreement import AgreementPosterior
from deepfailguard.decision.rules import highest_posterior, majority_vote, single_version
from deepfailguard.faults.rehearsal import Kind
from deepfailguard.guard.judging import judge, rule_for
from deepfailguard.predictor.dynamic_selection import DynamicSelectionPredictor, SelectionMethod
from deepfailguard.predictor.joint.hearing import Hearing
from deepfailguard.predictor.joint.pooling import Freedom
from deepfailguard.predictor.joint.predictor import JointPredictor
from deepfailguard.predictor.kde import KdePredictor
from deepfailguard.predictor.soft_vote import SoftVotePredictor
from deepfailguard.predictor.stacking import StackingPredictor
from deepfailguard.types import Decision, Evidence, Rehearsed

__all__ = [
    "BEST_SINGLE",
    "GUARD",
    "GUARD_AMONG",
    "LEARNING",
    "LOG_POOL",
    "MAJORITY",
    "PAPER",
    "POSTERIOR",
    "RULES",
    "SELECTIONS",
    "SIMPLE",
    "SOFT_VOTE",
    "STACKING",
    "TIES_BY_ACCURACY",
    "TUNED_STACKING",
    "Answering",
    "Answers",
    "fit_guard",
    "fit_guards",
    "fit_rules",
]

MAJORITY: Final = "majority"
TIES_BY_ACCURACY: Final = "majority, ties by accuracy"
BEST_SINGLE: Final = "best single version"
SOFT_VOTE: Final = "soft vote"
LOG_POOL: Final = "log pool"
PAPER: Final = "paper"
STACKING: Final = "stacking"
TUNED_STACKING: Final = "stacking, penalty chosen"
POSTERIOR: Final = "agreement-aware posterior"
SELECTIONS: Final[Mapping[str, SelectionMethod]] = {
    "OLA": "ola",
    "KNORA-U": "knora_u",
    "KNORA-E": "knora_e",
    "DES-P": "des_p",
}
GUARD: Final = "guard"
GUARD_AMONG: Final = "guard, among given answers"
SIMPLE: Final = (TIES_BY_ACCURACY, SOFT_VOTE, BEST_SINGLE, STACKING, TUNED_STACKING)
"""The rules that whoever needs no guard would take."""
RULES: Final = (
    MAJORITY,
    TIES_BY_ACCURACY,
    BEST_SINGLE,
    SOFT_VOTE,
    LOG_POOL,
    PAPER,
    STACKING,
    TUNED_STACKING,
    POSTERIOR,
    *SELECTIONS,
    GUARD_AMONG,
    GUARD,
)
LEARNING: Final[Mapping[str, Callable[[], Any]]] = {
    SOFT_VOTE: SoftVotePredictor,
    LOG_POOL: partial(SoftVotePredictor, pool="log"),
    STACKING: partial(StackingPredictor, penalty=1.0),
    TUNED_STACKING: StackingPredictor,
    POSTERIOR: AgreementPosterior,
    **{name: partial(DynamicSelectionPredictor, method) for name, method in SELECTIONS.items()},
}
"""The rules that learn, unfitted; the paper's needs distances and stands apart."""
_TIES: Final = 1e-9  # what calibration accuracy counts: it decides between equal failure probabilities alone


@dataclass(frozen=True, slots=True)
class Answers:
    """What one rule answers to B inputs.

    Attributes:
        labels: (B,) int64, -1 for no answer.
        failure_probability: (B,) float64 in [0, 1] that the answer is wrong; None for rules that do not tell it.
    """

    labels: Tensor
    failure_probability: Tensor | None = None


Answering = Callable[[Evidence], Mapping[str, Answers]]


def fit_rules(
    evidence: Evidence, truth: Tensor, searched: int, learning: Collection[str] = tuple(LEARNING)
) -> Answering:
    """All rules but the guard, fitted on calibration evidence.

    What comes back answers new evidence, by rule. The paper's rule takes part where that holds distances.

    Args:
        evidence: with logits, of M calibration inputs.
        truth: (M,) int64.
        searched: so many of them, the first ones, have distances.
        learning: which of the rules in `LEARNING` take part; the others cost next to nothing.
    """
    accuracy = (evidence.labels == truth[:, None]).double().mean(0)
    best = int(accuracy.argmax())
    paper = KdePredictor().fit(evidence[:searched], truth[:searched]) if searched else None
    learned = {name: LEARNING[name]().fit(evidence, truth) for name in LEARNING if name in learning}

    def answer(asked: Evidence) -> dict[str, Answers]:
        labels = asked.labels
        known = (1 - accuracy).expand(labels.shape)
        told = {
            MAJORITY: Answers(majority_vote(labels, known).labels),
            TIES_BY_ACCURACY: Answers(majority_vote(labels, known, ties="lowest_failure_probability").labels),
            BEST_SINGLE: _answers(single_version(labels, known, version=best)),
        }
        for name, predictor in learned.items():
            told[name] = _by_posterior(predictor, asked, known) if name in SELECTIONS else _judged(predictor, asked)
        if paper is not None and bool(asked.found.any()):
            told[PAPER] = _judged(paper, asked)
        return told

    return answer


def fit_guard(evidence: Evidence, truth: Tensor, rehearsed: Rehearsed | None) -> Answering:
    """The default guard; besides its answers those that it gives if only the versions' answers are allowed."""
    return _answering(JointPredictor().fit(evidence, truth, rehearsed))


def fit_guards(heard: Mapping[frozenset[Kind], Hearing]) -> dict[frozenset[Kind], Answering]:
    """Guards that did not rehearse some kinds, each as `fit_guard` would fit it; what all share is learned once.

    Args:
        heard: of the guards' versions, by the kinds that were left out of the rehearsal.
    """
    level: Freedom | None = None  # found by cross-validation on the calibration inputs alone: the same for all
    guards = {}
    for left_out, hearing in heard.items():
        predictor = JointPredictor().learn(hearing, level)
        level, guards[left_out] = predictor.level_, _answering(predictor)
    return guards


def _answering(predictor: JointPredictor) -> Answering:
    def answer(asked: Evidence) -> dict[str, Answers]:
        among = _answers(highest_posterior(asked.labels, predictor.failure_probability(asked)))
        return {GUARD_AMONG: among, GUARD: _judged(predictor, asked)}

    return answer


def _judged(predictor: Any, asked: Evidence) -> Answers:
    """By the rule that makes the most of the predictor, as a guard does."""
    return _answers(judge(asked, predictor, rule_for(predictor)).decision)


def _by_posterior(predictor: Any, asked: Evidence, known: Tensor) -> Answers:
    """By failure probability; of equal ones by calibration accuracy, which is what decides where votes tie."""
    failure = predictor.failure_probability(asked)
    return _answers(highest_posterior(asked.labels, torch.where(failure < 1, failure + _TIES * known, failure)))


def _answers(decision: Decision) -> Answers:
    return Answers(decision.labels, decision.failure_probability)
