"""All figures of a report in one record."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from deepfailguard.decision.rules import majority_vote
from deepfailguard.evaluation.common_mode import CommonMode, common_mode
from deepfailguard.evaluation.failure_prediction import FailurePredictionMeasures, measure_failure_prediction
from deepfailguard.evaluation.intervals import Interval, paired_difference
from deepfailguard.evaluation.measures import EnsembleMeasures, measure_ensemble
from deepfailguard.evaluation.records import Evaluation
from deepfailguard.evaluation.report.wording import (
    headline,
    remark_on_abstentions,
    remark_on_best_single,
    remark_on_chance,
    remark_on_changes,
)
from deepfailguard.types import Decision

__all__ = ["Summary", "VersionSummary", "majority_of", "summarise"]

_SEED = 0  # of the bootstrap: the same evaluation always gives the same report


@dataclass(frozen=True, slots=True)
class VersionSummary:
    """One version on the test inputs.

    Attributes:
        name: of the version.
        fault: its fault, empty string for a sound one.
        accuracy: in [0, 1]; a missing answer is a wrong answer.
        calibration_accuracy: in [0, 1].
        unanswered: to how many inputs it gave no answer.
        failure: how well its failure probability tells its wrong answers.
    """

    name: str
    fault: str
    accuracy: float
    calibration_accuracy: float
    unanswered: int
    failure: FailurePredictionMeasures

    def as_dict(self) -> dict[str, Any]:
        """All fields, flat and ready for JSON."""
        own = ("name", "fault", "accuracy", "calibration_accuracy", "unanswered")
        return {name: getattr(self, name) for name in own} | self.failure.as_dict()


@dataclass(frozen=True, slots=True)
class Summary:
    """What an evaluation found.

    Attributes:
        title: what was evaluated.
        classes: K class names.
        measures: of the ensemble.
        best_single: name of the version that was best on calibration data.
        over_majority: accuracy of the guard minus that of majority vote, with its interval.
        over_best_single: accuracy of the guard minus that of this version, with its interval.
        versions: N versions.
        guard_failure: how well the guard's failure probability tells its wrong answers.
        together: how the versions fail together.
        facts: what was run with which settings.
    """

    title: str
    classes: tuple[str, ...]
    measures: EnsembleMeasures
    best_single: str
    over_majority: Interval
    over_best_single: Interval
    versions: tuple[VersionSummary, ...]
    guard_failure: FailurePredictionMeasures
    together: CommonMode
    facts: dict[str, str]

    @property
    def headline(self) -> str:
        """The result in one sentence."""
        return headline(self.measures)

    @property
    def remarks(self) -> list[str]:
        """What belongs beside the headline: chance, the best single version, abstentions, missing answers."""
        several = len(self.versions) > 1
        remarks = [
            remark_on_chance(self.over_majority) if several else "",
            remark_on_changes(self.measures) if several else "",
            remark_on_best_single(self.best_single, self.measures, self.over_best_single) if several else "",
            remark_on_abstentions(self.measures),
            *(f"{v.name} gave no answer to {v.unanswered} inputs." for v in self.versions if v.unanswered),
        ]
        return [remark for remark in remarks if remark]

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON; None for what is undefined."""
        return {
            "title": self.title,
            "headline": self.headline,
            "remarks": self.remarks,
            "ensemble": self.measures.as_dict(),
            "best_single": self.best_single,
            "guard_minus_majority": asdict(self.over_majority),
            "guard_minus_best_single": asdict(self.over_best_single),
            "guard_failure_prediction": self.guard_failure.as_dict(),
            "versions": [version.as_dict() for version in self.versions],
            "common_mode": self.together.as_dict(),
            "classes": list(self.classes),
            "facts": dict(self.facts),
        }


def summarise(evaluation: Evaluation) -> Summary:
    """Measure everything that the report shows.

    Raises:
        DataFormatError: the evaluation has no inputs, or its parts do not fit together.
    """
    labels, truth, guard = evaluation.evidence.labels, evaluation.truth, evaluation.decision
    majority = majority_of(evaluation)
    best = int(evaluation.calibration_accuracy.argmax())
    measures = measure_ensemble(labels, truth, guard, majority, best)
    guard_right = guard.labels == truth
    return Summary(
        title=evaluation.title,
        classes=evaluation.classes,
        measures=measures,
        best_single=evaluation.names[best],
        over_majority=paired_difference(guard_right, majority.labels == truth, seed=_SEED),
        over_best_single=paired_difference(guard_right, labels[:, best] == truth, seed=_SEED),
        versions=tuple(_version(evaluation, i, measures.version_accuracy[i]) for i in range(len(evaluation.names))),
        guard_failure=measure_failure_prediction(guard.failure_probability, ~guard_right),
        together=common_mode(labels, truth, seed=_SEED, names=evaluation.names),
        facts=evaluation.facts,
    )


def majority_of(evaluation: Evaluation) -> Decision:
    """The majority vote on the evaluation's inputs, ties to the smallest label as in the paper."""
    # Failure probabilities do not decide this vote; zeros keep a predictor's NaN out of its checks.
    silent: Tensor = torch.zeros_like(evaluation.failure_probability)
    return majority_vote(evaluation.evidence.labels, silent, ties="smallest_label")


def _version(evaluation: Evaluation, column: int, accuracy: float) -> VersionSummary:
    evidence = evaluation.evidence
    wrong = evidence.labels[:, column] != evaluation.truth
    return VersionSummary(
        name=evaluation.names[column],
        fault=evaluation.faults[column],
        accuracy=accuracy,
        calibration_accuracy=float(evaluation.calibration_accuracy[column]),
        unanswered=int((~evidence.answered[:, column]).sum()),
        failure=measure_failure_prediction(evaluation.failure_probability[:, column], wrong),
    )
