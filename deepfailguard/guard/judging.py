"""The step that live and cached use share: from evidence to failure probabilities and a decision."""

import functools
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from deepfailguard.decision.base import Rule
from deepfailguard.decision.classes import most_probable_class
from deepfailguard.decision.rules import highest_posterior
from deepfailguard.errors import ConfigurationError
from deepfailguard.identity import TARGET, describe
from deepfailguard.predictor.base import ClassPredictor, FailurePredictor
from deepfailguard.predictor.class_posterior import failure_of
from deepfailguard.types import Decision, Evidence

__all__ = [
    "Judgement",
    "check_together",
    "for_versions",
    "judge",
    "option_of",
    "rule_for",
    "single_position",
    "uses_classes",
    "with_threshold",
]


@dataclass(frozen=True, slots=True)
class Judgement:
    """What follows from evidence.

    Attributes:
        failure_probability: (B, N) float64 in [0, 1].
        decision: the rule's.
        class_probability: (B, K) float64; None if the predictor or the rule knows none.
    """

    failure_probability: Tensor
    decision: Decision
    class_probability: Tensor | None = None


def judge(evidence: Evidence, predictor: FailurePredictor, decision: Rule) -> Judgement:
    """Predict failures from evidence and decide. Deterministic: the same evidence, the same bits."""
    rule: Any = decision
    if uses_classes(decision):
        assert isinstance(predictor, ClassPredictor)  # check_together has seen to it
        told = predictor.class_probability(evidence)
        failure_probability = failure_of(told, evidence)
        return Judgement(failure_probability, rule(evidence.labels, failure_probability, class_probability=told), told)
    failure_probability = predictor.failure_probability(evidence)
    return Judgement(failure_probability, rule(evidence.labels, failure_probability))


def uses_classes(decision: Rule) -> bool:
    """Whether the rule wants class probabilities."""
    return "class_probability" in inspect.signature(decision).parameters


def option_of(decision: Rule, name: str) -> Any:
    """What an option of the rule is set to; None if it is not set, or if the rule has no such option."""
    parameter = inspect.signature(decision).parameters.get(name)
    return None if parameter is None or parameter.default is parameter.empty else parameter.default


def single_position(decision: Rule) -> int | None:
    """Position of the version by which alone the rule answers; None if it hears all."""
    version = option_of(decision, "version")
    return version if isinstance(version, int) else None


def for_versions(decision: Rule, columns: Sequence[int]) -> Rule:
    """The rule for some of the versions: one that answers by a single version finds it in its new place.

    Args:
        decision: for all versions.
        columns: positions of those that are left.

    Raises:
        ConfigurationError: the single version is not among them.
    """
    version = single_position(decision)
    if version is None:
        return decision
    if version not in columns:
        raise ConfigurationError(
            f"the decision answers by version {version} alone, which would be left out; keep it, or fit a guard "
            "with another decision such as majority_vote"
        )
    rule: Any = decision
    moved: Rule = functools.partial(rule, version=list(columns).index(version))
    return moved


def with_threshold(decision: Rule, abstain_above: float) -> Rule:
    """The rule, abstaining above this failure probability.

    Raises:
        ConfigurationError: the rule has no such setting.
    """
    if "abstain_above" not in inspect.signature(decision).parameters:
        raise ConfigurationError(f"the decision {describe(decision)} takes no abstain_above, so it cannot be bounded")
    rule: Any = decision
    bounded: Rule = functools.partial(rule, abstain_above=abstain_above)
    return bounded


def rule_for(predictor: FailurePredictor) -> Rule:
    """The rule that makes the most of a predictor."""
    return most_probable_class if isinstance(predictor, ClassPredictor) else highest_posterior


def check_together(predictor: FailurePredictor, decision: Rule) -> None:
    """Refuse a rule that wants more than the predictor tells.

    Raises:
        ConfigurationError: the rule wants class probabilities, which the predictor does not tell.
    """
    if uses_classes(decision) and not isinstance(predictor, ClassPredictor):
        raise ConfigurationError(
            f"the decision {describe(decision)[TARGET]} needs class probabilities, which {type(predictor).__name__} "
            "does not tell; use JointPredictor (predictor=joint), or another decision such as highest_posterior"
        )
