"""The paper's table computed again from what its authors published: distances, labels, truths and densities."""

import json
import logging
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

from deepfailguard.boundary.published import PublishedCache, PublishedName, PublishedVersion
from deepfailguard.errors import ConfigurationError
from deepfailguard.evaluation.records import Member
from deepfailguard.evaluation.study import StudyRow, summarise_study, tabulate
from deepfailguard.pipeline.studying import Study
from deepfailguard.predictor.kde import KdePredictor
from deepfailguard.types import Evidence

__all__ = ["published_accuracy", "study_published"]

logger = logging.getLogger(__name__)

_FIRST_SHIFT = 11  # faults 11 and 12 have test sets of their own, so they are combined only with themselves


def published_accuracy(dataset: str, model: str, bug: int) -> float:
    """The published validation accuracy in [0, 1].

    Raises:
        ConfigurationError: none was published.

    >>> published_accuracy("CIFAR10", "resnet", 8)
    0.7015
    """
    text = files("deepfailguard.boundary").joinpath("published_accuracy.json").read_text(encoding="utf-8")
    by_fault = json.loads(text)["percent"][dataset][model]
    percent = by_fault[bug if bug < len(by_fault) else 0]
    if percent is None:
        raise ConfigurationError(f"no validation accuracy was published for {model} on {dataset} with fault {bug}")
    return float(round(percent / 100, 6))


def study_published(folder: Path, dataset: str, sizes: Sequence[int]) -> Study:
    """Every ensemble of the published versions of one data set, decided by the published densities.

    Args:
        folder: the authors' ``input_information``.
        dataset: one of theirs.
        sizes: of the ensembles.
    """
    cache = PublishedCache(folder)
    names = [name for name in cache.versions() if name.dataset == dataset]
    if not names:
        raise ConfigurationError(f"{folder} has no distances of {dataset}")
    groups = [[name for name in names if name.bug < _FIRST_SHIFT]]
    groups += [[name for name in names if name.bug == bug] for bug in (_FIRST_SHIFT, _FIRST_SHIFT + 1)]
    rows = [row for group in groups if group for row in _study(cache, group, sizes)]
    return Study(f"{dataset}: {len(names)} published versions", rows, summarise_study(rows))


def _study(cache: PublishedCache, names: Sequence[PublishedName], sizes: Sequence[int]) -> list[StudyRow]:
    names = [name for name in names if _has_accuracy(name)]
    if not names:
        return []
    versions = [cache.load(name.dataset, name.model, name.bug) for name in names]
    truth = cache.truth(names[0].dataset, names[0].bug)
    members = [_member(version, truth) for version in versions]
    accuracy = torch.tensor([published_accuracy(v.dataset, v.model, v.bug) for v in versions], dtype=torch.float64)
    evidence = Evidence.stack([version.distances for version in versions])
    probability = _predictor(versions, accuracy).failure_probability(evidence)
    return tabulate(members, {"paper": probability.split(1, dim=1)}, accuracy, sizes)


def _has_accuracy(name: PublishedName) -> bool:
    """The authors leave out versions without a validation accuracy, and so do we, but say so."""
    try:
        published_accuracy(name.dataset, name.model, name.bug)
    except ConfigurationError as error:
        logger.warning("left out: %s", error)
        return False
    return True


def _predictor(versions: Sequence[PublishedVersion], accuracy: Tensor) -> KdePredictor:
    right = [(version.correct_kde.points, version.correct_kde.bandwidth) for version in versions]
    wrong = [(version.wrong_kde.points, version.wrong_kde.bandwidth) for version in versions]
    return KdePredictor.from_densities(right, wrong, accuracy)


def _member(version: PublishedVersion, truth: Tensor) -> Member:
    test = Evidence.stack([version.distances])
    fault = f"bug{version.bug}" if version.bug else ""
    name = f"{version.model}+{fault}" if fault else version.model
    return Member(name, version.model, fault, calibration=test[:0], test=test, truth=truth)
