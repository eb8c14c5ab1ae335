"""The paper's table: every ensemble of 2 to 5 families, with the same fault in all or one faulty among sound ones."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, Literal

import torch
from torch import Tensor

from deepfailguard.decision.rules import highest_posterior, majority_vote
from deepfailguard.errors import ConfigurationError
from deepfailguard.evaluation.records import Member
from deepfailguard.predictor.base import FailurePredictor
from deepfailguard.types import Evidence

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
        return _share(self.accuracy, self.majority, self.oracle)

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
    """All ensembles of these sizes that hold each family at most once.

    Three settings: all sound; all with the same fault; one faulty among sound ones.
    """
    sound = [i for i, member in enumerate(members) if not member.fault]
    faults = sorted({member.fault for member in members if member.fault})
    for size in sizes:
        yield from _of_families(members, sound, size, "sound", "")
        for fault in faults:
            faulty = [i for i, member in enumerate(members) if member.fault == fault]
            yield from _of_families(members, faulty, size, "same_fault", fault)
            for bad in faulty:
                others = [i for i in sound if members[i].family != members[bad].family]
                for rest in _of_families(members, others, size - 1, "one_faulty", fault):
                    yield Ensemble("one_faulty", fault, (bad, *rest.columns))


def run_study(
    members: Sequence[Member],
    calibration_truth: Tensor,
    truth: Tensor,
    predictors: Mapping[str, FailurePredictor],
    sizes: Sequence[int] = (2, 3, 4, 5),
) -> list[StudyRow]:
    """Measure every predictor, with the highest posterior deciding, on every ensemble.

    The predictors must judge each version by its own evidence (``judges_alone``): each is fitted once on all
    members and its columns are then combined.

    Args:
        members: the versions under their conditions.
        calibration_truth: (M,) int64.
        truth: (B,) int64.
        predictors: by the name under which its results shall stand.
        sizes: of the ensembles.
    """
    calibration, test = _side_by_side([m.calibration for m in members]), _side_by_side([m.test for m in members])
    correct = calibration.labels == calibration_truth[:, None]
    probabilities = {name: _fit(name, p, calibration, correct, test) for name, p in predictors.items()}
    return tabulate(members, truth, probabilities, correct.double().mean(0), sizes)


def tabulate(
    members: Sequence[Member],
    truth: Tensor,
    probabilities: Mapping[str, Tensor],
    calibration_accuracy: Tensor,
    sizes: Sequence[int],
) -> list[StudyRow]:
    """Measure failure probabilities (B, M), by rule, on every ensemble of M members.

    Args:
        members: the versions under their conditions; their test evidence is used.
        truth: (B,) int64.
        probabilities: (B, M) failure probabilities by the rule's name.
        calibration_accuracy: (M,), names the best single version.
        sizes: of the ensembles.
    """
    labels = torch.cat([member.test.labels for member in members], dim=1)
    rows = []
    for ensemble in ensembles(members, sizes):
        columns = list(ensemble.columns)
        names = " ".join(members[i].name for i in columns)
        baselines = _baselines(labels[:, columns], truth, int(calibration_accuracy[columns].argmax()))
        for rule, probability in probabilities.items():
            reached = _accuracy(highest_posterior(labels[:, columns], probability[:, columns]).labels, truth)
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


def _of_families(
    members: Sequence[Member], candidates: Sequence[int], size: int, setting: Setting, fault: str
) -> Iterator[Ensemble]:
    for columns in combinations(candidates, size):
        if len({members[i].family for i in columns}) == size:
            yield Ensemble(setting, fault, columns)


def _fit(name: str, predictor: FailurePredictor, calibration: Evidence, correct: Tensor, test: Evidence) -> Tensor:
    if not predictor.judges_alone:
        raise ConfigurationError(
            f"predictor {name!r} weighs versions together; a study needs one that judges each alone"
        )
    return predictor.fit(calibration, correct).failure_probability(test)


def _baselines(labels: Tensor, truth: Tensor, best: int) -> tuple[float, float, float]:
    """Accuracies of majority vote, of the best single version and of the oracle."""
    right = labels == truth[:, None]
    majority = majority_vote(labels, torch.zeros(labels.shape)).labels
    return _accuracy(majority, truth), float(right[:, best].double().mean()), float(right.any(1).double().mean())


def _side_by_side(columns: Sequence[Evidence]) -> Evidence:
    return Evidence(
        labels=torch.cat([column.labels for column in columns], dim=1),
        distance=torch.cat([column.distance for column in columns], dim=1),
        found=torch.cat([column.found for column in columns], dim=1),
    )


def _accuracy(labels: Tensor, truth: Tensor) -> float:
    return float((labels == truth).double().mean())


def _share(accuracy: float, majority: float, oracle: float) -> float | None:
    return None if oracle <= majority else (accuracy - majority) / (oracle - majority)


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
        rescue_share=_share(accuracy, majority, oracle),
        worse_than_majority=mean(float(row.accuracy < row.majority) for row in rows),
    )
