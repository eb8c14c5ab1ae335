"""Asking versions one after the other, each only about the inputs that still need it."""

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from deepfailguard.boundary.base import DistanceEstimator
from deepfailguard.guard.asking import Answers, ask, evidence_of
from deepfailguard.predictor.base import FailurePredictor, SettlingPredictor
from deepfailguard.types import NO_ANSWER, Distances, Evidence, Need
from deepfailguard.versions.version import Version

__all__ = ["Asker", "ask_in_turns", "ask_versions", "in_turns"]


Asker = Callable[[Tensor], Answers]
"""Asks one version for answers to images (B, C, H, W)."""


def ask_versions(
    versions: Sequence[Version],
    estimators: Sequence[DistanceEstimator | None],
    images: Tensor,
    predictor: FailurePredictor,
) -> list[Answers]:
    """The versions' answers to images (B, C, H, W); to inputs that they need not be asked about they have none."""
    needs = predictor.needs
    if not isinstance(predictor, SettlingPredictor):
        return [ask(v, e, images, needs) for v, e in zip(versions, estimators, strict=True)]
    pairs = zip(versions, estimators, strict=True)
    return ask_in_turns([functools.partial(_ask_one, *pair, needs) for pair in pairs], images, predictor, needs)


def ask_in_turns(
    askers: Sequence[Asker], images: Tensor, predictor: SettlingPredictor, needs: frozenset[Need]
) -> list[Answers]:
    """The versions' answers to images (B, C, H, W), each asked only about those that are not settled before."""
    left = torch.arange(len(images))
    answers: list[Answers] = []
    for stage, asker in enumerate(askers, 1):
        came = asker(images[left.to(images.device)])
        answers.append(_placed(came, left, len(images)))
        if len(left):
            left = left[~_settled(answers, left, predictor, needs, stage)]
    return answers


def _ask_one(version: Version, estimator: DistanceEstimator | None, needs: frozenset[Need], images: Tensor) -> Answers:
    return ask(version, estimator, images, needs)


def in_turns(evidence: Evidence, predictor: FailurePredictor) -> Evidence:
    """Evidence of all versions without the answers for which `ask_versions` would not have asked."""
    if not isinstance(predictor, SettlingPredictor):
        return evidence
    labels, left = evidence.labels.clone(), torch.arange(len(evidence))
    for stage in range(1, evidence.versions):
        settled = predictor.is_settled(evidence[left].of_versions(list(range(stage))), stage).cpu()
        labels[left[settled], stage:] = NO_ANSWER
        left = left[~settled]
    return _silenced(evidence, labels)


def _silenced(evidence: Evidence, labels: Tensor) -> Evidence:
    """With these labels; where they are -1 nothing else is told either, as of a version that was not asked."""
    told = labels != NO_ANSWER
    logits, features, stability = evidence.logits, evidence.features, evidence.stability
    return Evidence(
        labels,
        torch.where(told, evidence.distance, 0.0),
        evidence.found & told,
        None if logits is None else torch.where(told[:, :, None], logits, 0.0),
        None if features is None else tuple(torch.where(told[:, n, None], f, 0.0) for n, f in enumerate(features)),
        None if stability is None else torch.where(told, stability, 0.0),
    )


def _settled(
    answers: Sequence[Answers], left: Tensor, predictor: SettlingPredictor, needs: frozenset[Need], stage: int
) -> Tensor:
    return predictor.is_settled(evidence_of(answers, needs)[left], stage).cpu()


def _placed(answers: Answers, rows: Tensor, total: int) -> Answers:
    """Answers to some of B inputs in their places; the others have none."""
    if len(rows) == total:
        return answers
    logits = answers.logits.new_zeros(total, answers.logits.shape[1])
    features = answers.features.new_zeros(total, answers.features.shape[1])
    given = answers.distances
    labels = torch.full((total,), NO_ANSWER)
    size, found = given.size.new_zeros(total), torch.zeros(total, dtype=torch.bool)
    logits[rows], features[rows] = answers.logits, answers.features
    labels[rows], size[rows], found[rows] = given.labels, given.size, given.found
    steady = None if answers.stability is None else torch.zeros(total).index_copy(0, rows, answers.stability)
    return Answers(logits, features, Distances(labels, size, found), answers.health, steady)
