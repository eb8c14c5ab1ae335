"""The step that live and cached use share: from evidence to failure probabilities and a decision."""

from dataclasses import dataclass

from torch import Tensor

from deepfailguard.decision.base import DecisionRule
from deepfailguard.predictor.base import FailurePredictor
from deepfailguard.types import Decision, Evidence

__all__ = ["Judgement", "judge"]


@dataclass(frozen=True, slots=True)
class Judgement:
    """What follows from evidence.

    Attributes:
        failure_probability: (B, N) float64 in [0, 1].
        decision: the rule's.
    """

    failure_probability: Tensor
    decision: Decision


def judge(evidence: Evidence, predictor: FailurePredictor, decision: DecisionRule) -> Judgement:
    """Predict failures from evidence and decide. Deterministic: the same evidence, the same bits."""
    failure_probability = predictor.failure_probability(evidence)
    return Judgement(failure_probability, decision(evidence.labels, failure_probability))
