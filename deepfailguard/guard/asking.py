"""Asking one version, such that nothing that it does can take the others' answers down."""

from dataclasses import dataclass

import torch
from torch import Tensor

from deepfailguard.boundary.base import DistanceEstimator
from deepfailguard.guard.verdict import VersionHealth
from deepfailguard.types import NO_ANSWER, Distances
from deepfailguard.versions.version import Version, check_logits, run

__all__ = ["Answers", "ask", "piece_size"]

_PIECE = 256
_SAME_LOGIT = 1e-3


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
        hint = "; a smaller batch_size of the distance needs less" if isinstance(error, torch.OutOfMemoryError) else ""
        return _no_answers(version, len(images), f"{type(error).__name__}: {error}{hint}")


def piece_size(estimator: DistanceEstimator | None) -> int:
    """How many inputs to run at once: the estimator's batch, so that live and cached run the same batches."""
    return int(getattr(estimator, "batch_size", _PIECE))


def _forward(version: Version, images: Tensor) -> Tensor:
    logits = check_logits(run(version.model, images), len(images), version.classes, version.name)
    return logits.cpu().double()  # in this order: not every device has float64


def _ask(version: Version, estimator: DistanceEstimator | None, images: Tensor) -> Answers:
    if len(images) == 0:
        return _no_answers(version, 0, "")
    logits = torch.cat([_forward(version, piece) for piece in images.split(piece_size(estimator))])
    sound = torch.isfinite(logits).all(1)
    if estimator is None:
        nothing = torch.zeros(len(images))
        distances = Distances(logits.argmax(1), nothing, nothing.bool())
    else:
        distances = estimator(version.model, images)
        _check_labels(logits, distances.labels, sound)
    labels = torch.where(sound, distances.labels, NO_ANSWER)
    probabilities = torch.where(sound[:, None], logits, 0.0).softmax(1) * sound[:, None]
    bad = int((~sound).sum())
    problem = f"logits of {bad} of {len(images)} inputs are NaN or infinite" if bad else ""
    health = VersionHealth(version.name, int((labels != NO_ANSWER).sum()), len(images), problem)
    return Answers(probabilities, Distances(labels, distances.size, distances.found & sound), health)


def _check_labels(logits: Tensor, labels: Tensor, sound: Tensor) -> None:
    """Refuse distances of another model than the one that answers: a stale cache, say.

    The search runs the model in other batches, so where two logits are all but equal either may win.
    """
    top = logits.amax(1)
    own = logits.gather(1, labels.clamp_min(0)[:, None]).squeeze(1)
    differs = sound & ((labels == NO_ANSWER) | (top - own > _SAME_LOGIT * top.abs().clamp_min(1.0)))
    if differs.any():
        raise ValueError(
            f"the boundary distances tell another answer than the model for {int(differs.sum())} of {len(labels)} "
            "inputs; delete the cache of distances if the model's code was changed"
        )


def _no_answers(version: Version, asked: int, problem: str) -> Answers:
    nothing = torch.zeros(asked)
    labels = torch.full((asked,), NO_ANSWER)
    probabilities = torch.zeros(asked, version.classes, dtype=torch.float64)
    return Answers(
        probabilities, Distances(labels, nothing, nothing.bool()), VersionHealth(version.name, 0, asked, problem)
    )
