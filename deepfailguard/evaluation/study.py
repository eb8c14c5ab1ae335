"""The paper's table: every ensemble of 2 to 5 families, with the same fault in all or one faulty among sound ones."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, Literal

import torch
from torch import Tensor

from deepfailguard.decision.rules import highest_posterior, majority_vote
from deepfailguard.errors import ConfigurationError
from deepfailguard.evaluation.measures import known_rescue_share
from deepfailguard.evaluation.records import Member
from deepfailguard.predictor.base import FailurePredictor

__all__ = ["Ensemble", "StudyRow", "StudySummary", "ensembles", "run_study", "summarise_study", "tabulate"]

Setting = Literal["sound", "same_fault", "one_faulty"]


@dataclass(frozen=True, slots=True)
class Ensemble:
    """Some of a study's members.

    Attributes:
        setting: whether all are sound, all have the same fault, or one is faulty among sound ones.
        fault: which fault, empty string if all are sound.
        columns: positions of its members in the study.
    """

    setting: Setting
    fault: str
    columns: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StudyRow:
    """What one rule reached with one ensemble, beside the baselines.

    Attributes:
        setting: see `Ensemble`.
        fault: see `Ensemble`.
        size: number of versions N.
        members: their names.
        rule: which rule.
        accuracy: of the rule.
        majority: accuracy of majority vote, ties to the smallest label as in the paper.
        best_single: accuracy of the version that was best on calibration data.
        oracle: share of inputs which any version gets right.
    """

    setting: str
    fault: str
    size: int
    members: str
    rule: str
    accuracy: float
    majority: float
    best_single: float
    oracle: float

    @property
    def rescue_share(self) -> float | None:
        """Share of the headroom between majority and oracle that the rule wins; None without headroom."""
        return known_rescue_share(self.accuracy, self.majority, self.oracle)

    def as_dict(self) -> dict[str, Any]:
        """As a flat row."""
        return asdict(self) | {"rescue_share": self.rescue_share}


@dataclass(frozen=True, slots=True)
class StudySummary:
    """The mean over all ensembles of one setting and size under one rule.

    Attributes:
        rescue_share: of the means (not the mean of the shares, which small headrooms would dominate).
        worse_than_majority: share of the ensembles in which the rule is worse than majority vote.
    """

    setting: str
    size: int
    rule: str
    ensembles: int
    accuracy: float
    majority: float
    best_single: float
    oracle: float
    rescue_share: float | None
    worse_than_majority: float

    def as_dict(self) -> dict[str, Any]:
        """As a flat row."""
        return asdict(self)


def ensembles(members: Sequence[Member], sizes: Iterable[int]) -> Iterator[Ensemble]:
    """All ensembles of these sizes that hold each family at most once and see the same test inputs.

    Three settings: all sound; all with the same fault; one faulty among sound ones. A fault that brought test
    inputs of its own (another truth) is not mixed with sound members.
    """
    sound = [i for i, member in enumerate(members) if not member.fault]
    faults = sorted({member.fault for member in members if member.fault})
    for size in sizes:
        yield from _of_families(members, sound, size, "sound", "")
        for fault in faults:
            faulty = [i for i, member in enumerate(members) if member.fault == fault]
            yield from _of_families(members, faulty, size, "same_fault", fault)
            for bad in faulty:
                others = [i for i in sound if _may_meet(members[i], members[bad])]
                for rest in _of_families(members, others, size - 1, "one_faulty", fault):
                    yield Ensemble("one_faulty", fault, (bad, *rest.columns))


def run_study(
    members: Sequence[Member],
    calibration_truth: Tensor,
    predictors: Mapping[str, FailurePredictor],
    sizes: Sequence[int] = (2, 3, 4, 5),
) -> list[StudyRow]:
    """Measure every predictor, with the highest posterior deciding, on every ensemble.

    The predictors must judge each version by its own evidence (``judges_alone``): each is fitted once on every
    member, and the members' columns are then combined.

    Args:
        members: the versions under their conditions.
        calibration_truth: (M,) int64.
        predictors: by the name under which its results shall stand.
        sizes: of the ensembles.
    """
    correct = [member.calibration.labels == calibration_truth[:, None] for member in members]
    probabilities = {
        name: [_fit(name, predictor, member, calibration_truth) for member in members]
        for name, predictor in predictors.items()
    }
    return tabulate(members, probabilities, torch.stack([right.double().mean() for right in correct]), sizes)


def tabulate(
    members: Sequence[Member],
    probabilities: Mapping[str, Sequence[Tensor]],
    calibration_accuracy: Tensor,
    sizes: Sequence[int],
) -> list[StudyRow]:
    """Measure failure probabilities, by rule and member, on every ensemble.

    Args:
        members: the versions under their conditions; their test evidence is used.
        probabilities: by the rule's name, for each member (B, 1).
        calibration_accuracy: (M,), names the best single version.
        sizes: of the ensembles.
    """
    rows = []
    for ensemble in ensembles(members, sizes):
        columns = list(ensemble.columns)
        names, truth = ", ".join(members[i].name for i in columns), members[columns[0]].truth
        labels = torch.cat([members[i].test.labels for i in columns], dim=1)
        baselines = _baselines(labels, truth, int(calibration_accuracy[columns].argmax()))
        for rule, by_member in probabilities.items():
            probability = torch.cat([by_member[i] for i in columns], dim=1)
            reached = _accuracy(highest_posterior(labels, probability).labels, truth)
            rows.append(StudyRow(ensemble.setting, ensemble.fault, len(columns), names, rule, reached, *baselines))
    return rows


def summarise_study(rows: Sequence[StudyRow]) -> list[StudySummary]:
    """Means by setting, size and rule, in the order in which these first occur; "all" settings come last."""
    groups: dict[tuple[str, int, str], list[StudyRow]] = {}
    for row in rows:
        groups.setdefault((row.setting, row.size, row.rule), []).append(row)
    for row in rows:
        groups.setdefault(("all", row.size, row.rule), []).append(row)
    return [_summary(*key, group) for key, group in groups.items()]


def _may_meet(one: Member, other: Member) -> bool:
    return one.family != other.family and torch.equal(one.truth, other.truth)


def _of_families(
    members: Sequence[Member], candidates: Sequence[int], size: int, setting: Setting, fault: str
) -> Iterator[Ensemble]:
    for columns in combinations(candidates, size):
        if len({members[i].family for i in columns}) == size:
            yield Ensemble(setting, fault, columns)


def _fit(name: str, predictor: FailurePredictor, member: Member, truth: Tensor) -> Tensor:
    if not predictor.judges_alone:
        raise ConfigurationError(
            f"predictor {name!r} weighs versions together; a study needs one that judges each alone"
        )
    return predictor.fit(member.calibration, truth).failure_probability(member.test)


def _baselines(labels: Tensor, truth: Tensor, best: int) -> tuple[float, float, float]:
    """Accuracies of majority vote, of the best single version and of the oracle."""
    right = labels == truth[:, None]
    majority = majority_vote(labels, torch.zeros(labels.shape)).labels
    return _accuracy(majority, truth), float(right[:, best].double().mean()), float(right.any(1).double().mean())


def _accuracy(labels: Tensor, truth: Tensor) -> float:
    return float((labels == truth).double().mean())


def _summary(setting: str, size: int, rule: str, rows: Sequence[StudyRow]) -> StudySummary:
    def mean(values: Iterable[float]) -> float:
        return sum(values) / len(rows)

    accuracy, majority = mean(row.accuracy for row in rows), mean(row.majority for row in rows)
    oracle = mean(row.oracle for row in rows)
    return StudySummary(
        setting=setting,
        size=size,
        rule=rule,
        ensembles=len(rows),
        accuracy=accuracy,
        majority=majority,
        best_single=mean(row.best_single for row in rows),
        oracle=oracle,
        rescue_share=known_rescue_share(accuracy, majority, oracle),
        worse_than_majority=mean(float(row.accuracy < row.majority) for row in rows),
    )
