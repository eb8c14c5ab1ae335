"""Asking one version, such that nothing that it does can take the others' answers down."""

from dataclasses import dataclass

import torch
from torch import Tensor

from deepfailguard.boundary.base import DistanceEstimator
from deepfailguard.guard.verdict import VersionHealth
from deepfailguard.types import NO_ANSWER, Distances
from deepfailguard.versions.version import Version, device_of, evaluating

__all__ = ["Answers", "ask"]


@dataclass(frozen=True, slots=True)
class Answers:
    """One version's answers to B inputs.

    Attributes:
        probabilities: (B, K) float64 on the CPU, zero where there is no answer.
        distances: labels (-1 for no answer), boundary distances and whether they were found.
        health: how the version did.
    """

    probabilities: Tensor
    distances: Distances
    health: VersionHealth


def ask(version: Version, estimator: DistanceEstimator | None, images: Tensor) -> Answers:
    """Ask one version for answers to images (B, C, H, W) that are known to be finite and in the bounds.

    An exception or an output of the wrong shape loses this version's answers, output that is not finite
    loses the answer to that input; either is told in the health and nothing is raised.

    Args:
        version: whom to ask.
        estimator: tells boundary distances; None if nobody needs them.
        images: (B, C, H, W), B may be 0.
    """
    try:
        return _ask(version, estimator, images)
    except Exception as error:  # whatever anybody's model raises: this is the isolation
        return _no_answers(version, len(images), f"{type(error).__name__}: {error}")


@torch.no_grad()
def _forward(version: Version, images: Tensor) -> Tensor:
    with evaluating(version.model):
        output = version.model(images.to(device_of(version.model)))
    expected = (len(images), version.classes)
    if not isinstance(output, Tensor) or output.shape != expected:
        came = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"returned {came} instead of logits of shape {expected}")
    return output.detach().double().cpu()


def _ask(version: Version, estimator: DistanceEstimator | None, images: Tensor) -> Answers:
    if len(images) == 0:
        return _no_answers(version, 0, "")
    logits = _forward(version, images)
    sound = torch.isfinite(logits).all(1)
    if estimator is None:
        nothing = torch.zeros(len(images))
        distances = Distances(logits.argmax(1), nothing, nothing.bool())
    else:
        distances = estimator(version.model, images)
    labels = torch.where(sound, distances.labels, NO_ANSWER)
    probabilities = torch.where(sound[:, None], logits, 0.0).softmax(1) * sound[:, None]
    bad = int((~sound).sum())
    problem = f"logits of {bad} of {len(images)} inputs are NaN or infinite" if bad else ""
    health = VersionHealth(version.name, int((labels != NO_ANSWER).sum()), len(images), problem)
    return Answers(probabilities, Distances(labels, distances.size, distances.found & sound), health)


def _no_answers(version: Version, asked: int, problem: str) -> Answers:
    nothing = torch.zeros(asked)
    labels = torch.full((asked,), NO_ANSWER)
    probabilities = torch.zeros(asked, version.classes, dtype=torch.float64)
    return Answers(
        probabilities, Distances(labels, nothing, nothing.bool()), VersionHealth(version.name, 0, asked, problem)
    )
