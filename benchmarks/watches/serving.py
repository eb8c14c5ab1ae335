"""Serving recorded answers: the watched guard itself, fed with evidence instead of images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from benchmarks.decisions.ensembles import Ensemble
from benchmarks.decisions.evidence import PoolEvidence
from benchmarks.decisions.images import CALIBRATION
from deepfailguard.decision.classes import most_probable_class
from deepfailguard.guard.asking import Answers
from deepfailguard.guard.calibrating import make_card
from deepfailguard.guard.calibration import Calibration, hashes_of
from deepfailguard.guard.guarded import GuardedPredictor
from deepfailguard.guard.judging import judge
from deepfailguard.guard.saved import SavedGuard
from deepfailguard.guard.verdict import VersionHealth
from deepfailguard.guard.watch_report import WatchReport
from deepfailguard.guard.watched import WatchedGuard
from deepfailguard.predictor.joint.predictor import JointPredictor
from deepfailguard.types import Bounds, Distances, Evidence
from deepfailguard.versions.version import Version

__all__ = ["Service", "guard_of", "labels_of", "serve"]

_BATCH: Final = 32


class _Remembering(SavedGuard):
    """A guard that is fitted once for each choice of its versions: many streams need the same ones."""

    def of_versions(self, columns: list[int]) -> SavedGuard:
        known: dict[tuple[int, ...], SavedGuard] = self.__dict__.setdefault("known", {})
        if tuple(columns) not in known:
            known[tuple(columns)] = super().of_versions(columns)
        return known[tuple(columns)]


@dataclass(frozen=True, slots=True)
class Service:
    """What came of a stream of B inputs.

    Attributes:
        labels: (B,) int64, the answers that were given.
        reports: how the versions stood after each batch.
        ends: how many inputs had come by then.
    """

    labels: Tensor
    reports: Sequence[WatchReport]
    ends: Sequence[int]

    @property
    def first_alarm(self) -> int | None:
        """Position of the first batch with an alarm; None if there was none."""
        return next((number for number, report in enumerate(self.reports) if report.alarms), None)

    def start(self, batch: int) -> int:
        """How many inputs had come before a batch."""
        return self.ends[batch - 1] if batch else 0


def guard_of(pool: PoolEvidence, ensemble: Ensemble, versions: Sequence[Version]) -> GuardedPredictor:
    """The default guard of an ensemble, fitted on kept evidence."""
    members, data = ensemble.members, pool.parts[CALIBRATION].images
    rehearsed = pool.rehearsed(members, frozenset())
    calibration = Calibration(pool.of(CALIBRATION, members), data.labels, hashes_of(data.images), rehearsed)
    predictor = JointPredictor().fit(calibration.evidence, calibration.truth, rehearsed)
    classes = tuple(map(str, range(versions[0].classes)))
    card = make_card(versions, classes, Bounds(), data, calibration)
    return GuardedPredictor(versions, _Remembering(card, predictor, most_probable_class, None, calibration))


def serve(guard: GuardedPredictor, evidence: Evidence) -> Service:
    """Let the watched guard answer a stream of recorded evidence in batches of 32, from its start."""
    watched = WatchedGuard(guard)
    names, labels, reports, ends = guard.saved.card.names, [], [], []
    for start in range(0, len(evidence), _BATCH):
        batch = evidence[start : start + _BATCH]
        labels.append(watched.judge(_answers(batch, names), torch.arange(len(batch)), len(batch)).labels)
        reports.append(watched.report())
        ends.append(start + len(batch))
    return Service(torch.cat(labels), reports, ends)


def labels_of(guard: GuardedPredictor, evidence: Evidence, columns: Sequence[int]) -> Tensor:
    """What the guard of some of the versions, unwatched, answers to evidence of all: (B,) int64."""
    chosen = list(columns)
    whole = len(chosen) == evidence.versions
    saved = guard.saved if whole else guard.saved.of_versions(chosen)
    asked = evidence if whole else evidence.of_versions(chosen)
    return judge(asked, saved.predictor, saved.decision).decision.labels


def _answers(evidence: Evidence, names: Sequence[str]) -> list[Answers]:
    assert evidence.logits is not None
    assert evidence.features is not None
    told = []
    for column, name in enumerate(names):
        distances = Distances(evidence.labels[:, column], evidence.distance[:, column], evidence.found[:, column])
        health = VersionHealth(name, int(evidence.answered[:, column].sum()), len(evidence))
        told.append(Answers(evidence.logits[:, column].double(), evidence.features[column], distances, health))
    return told
