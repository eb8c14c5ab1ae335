"""Asking one version, such that nothing that it does can take the others' answers down."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deepfailguard.boundary.base import DistanceEstimator
from deepfailguard.errors import WrongOutputError
from deepfailguard.guard.verdict import FaultKind, VersionHealth
from deepfailguard.types import NO_ANSWER, Distances, Evidence, Need
from deepfailguard.versions.stability import stability
from deepfailguard.versions.tapping import tapped
from deepfailguard.versions.version import Version, check_logits, device_of, evened, run

__all__ = ["Answers", "ask", "evidence_of", "no_answers", "piece_size"]

_PIECE = 256
_SAME_LOGIT = 1e-3


@dataclass(frozen=True, slots=True)
class Answers:
    """One version's answers to B inputs.

    Attributes:
        logits: (B, K) float64 on the CPU, zero where there is no answer.
        features: (B, F) float32 on the CPU, what its last layer got; F = 0 if nobody asked for them.
        distances: labels (-1 for no answer), boundary distances and whether they were found.
        health: how the version did.
        stability: (B,) float32 as in `Evidence`; None if nobody asked for it.
    """

    logits: Tensor
    features: Tensor
    distances: Distances
    health: VersionHealth
    stability: Tensor | None = None

    @property
    def probabilities(self) -> Tensor:
        """(B, K) float64, the softmax of the logits; zero where there is no answer."""
        return self.logits.softmax(1) * (self.distances.labels != NO_ANSWER)[:, None]

    @classmethod
    def concatenate(cls, parts: "Sequence[Answers]") -> "Answers":
        """Several batches of one version as one; the health tells the first problem."""
        steady = [part.stability for part in parts if part.stability is not None]
        return cls(
            torch.cat([part.logits for part in parts]),
            _joined([part.features for part in parts]),
            Distances.concatenate([part.distances for part in parts]),
            _health([part.health for part in parts]),
            torch.cat(steady) if len(steady) == len(parts) else None,
        )


def _health(parts: Sequence[VersionHealth]) -> VersionHealth:
    problem = next((part.problem for part in parts if part.problem), "")
    fault = next((part.fault for part in parts if part.fault), None)
    answered, asked = sum(part.answered for part in parts), sum(part.asked for part in parts)
    return VersionHealth(parts[0].name, answered, asked, problem, fault)


def _joined(features: Sequence[Tensor]) -> Tensor:
    """One below the other; batches that were not answered have no columns and get zeros."""
    width = max(each.shape[1] for each in features)
    return torch.cat([each if each.shape[1] == width else each.new_zeros(len(each), width) for each in features])


def evidence_of(answers: Sequence[Answers], needs: frozenset[Need]) -> Evidence:
    """What a predictor may see of all versions' answers to the same inputs."""
    stacked = Evidence.stack([each.distances for each in answers])
    logits = torch.stack([each.logits.float() for each in answers], 1) if "logits" in needs else None
    features = tuple(each.features for each in answers) if "features" in needs else None
    steady = torch.stack([_stability_of(each) for each in answers], 1) if "stability" in needs else None
    return replace(stacked, logits=logits, features=features, stability=steady)


def _stability_of(answers: Answers) -> Tensor:
    """(B,) float32; where nobody asked for it, it is not known of answers, and 0 without one."""
    if answers.stability is not None:
        return answers.stability
    return _unknown(answers.distances.labels)


def _unknown(labels: Tensor) -> Tensor:
    return torch.where(labels == NO_ANSWER, 0.0, torch.nan)


def ask(
    version: Version, estimator: DistanceEstimator | None, images: Tensor, needs: frozenset[Need] = frozenset()
) -> Answers:
    """Ask one version for answers to images (B, C, H, W) that are known to be finite and in the bounds.

    Output of the wrong shape loses this version's answers, output that is not finite loses the answer to that
    input. An exception loses the answers to the inputs that raise it, as far as it can be told which these are. Who
    fails when asked about changed copies has answered; only the stability is not known then. Each is told in the
    health and nothing is raised.

    Args:
        version: whom to ask.
        estimator: tells boundary distances; None if nobody needs them.
        images: (B, C, H, W), B may be 0.
        needs: what somebody needs; distances are told by the estimator, whatever is said here.
    """
    answers = _attempt(version, estimator, images, needs)
    if len(images) < 2 or answers.health.fault != "exception":
        return answers
    return _searched(version, estimator, images, needs, answers)


def _searched(
    version: Version, estimator: DistanceEstimator | None, images: Tensor, needs: frozenset[Need], failed: Answers
) -> Answers:
    """Answers to the inputs that do not raise what the batch raised: one bad input must not fail the others.

    Half of the inputs are left out until the others are answered. Where both halves raise, it is the version.
    """
    halves = [_attempt(version, estimator, half, needs) for half in images.tensor_split(2)]
    sound = [half.health.fault != "exception" for half in halves]
    if not any(sound):
        return failed
    if not all(sound):
        bad = sound.index(False)
        if halves[bad].health.asked > 1:
            halves[bad] = _searched(version, estimator, images.tensor_split(2)[bad], needs, halves[bad])
    return Answers.concatenate(halves)


def _attempt(version: Version, estimator: DistanceEstimator | None, images: Tensor, needs: frozenset[Need]) -> Answers:
    try:
        return _ask(version, estimator, images, needs)
    except WrongOutputError as error:
        return no_answers(
            version.name, version.classes, len(images), f"{type(error).__name__}: {error}", "wrong output"
        )
    except Exception as error:  # whatever anybody's model raises: this is the isolation
        hint = "; a smaller batch_size of the distance needs less" if isinstance(error, torch.OutOfMemoryError) else ""
        told = f"{type(error).__name__}: {error}{hint}"
        return no_answers(version.name, version.classes, len(images), told, "exception")


def piece_size(estimator: DistanceEstimator | None) -> int:
    """How many inputs to run at once: the estimator's batch, so that live and cached run the same batches."""
    return int(getattr(estimator, "batch_size", _PIECE))


def _forward(version: Version, images: Tensor, features: bool) -> tuple[Tensor, Tensor]:
    """Logits (B, K) float64 and features (B, F) float32 on the CPU; F = 0 if they are not wanted."""
    count, filled = len(images), evened(images)
    if features:
        tap = tapped(version.model, filled.to(device_of(version.model), copy=True))
        logits, seen = tap.logits, tap.features[:count]
    else:
        logits = run(version.model, filled)
        seen = torch.zeros(count, 0)
    checked = check_logits(logits, len(filled), version.classes, version.name)[:count]
    return checked.cpu().double(), seen.cpu().float()  # in this order: not every device has float64


def _ask(version: Version, estimator: DistanceEstimator | None, images: Tensor, needs: frozenset[Need]) -> Answers:
    if len(images) == 0:
        return no_answers(version.name, version.classes, 0, "", None)
    size = piece_size(estimator)
    parts = [_forward(version, piece, "features" in needs) for piece in images.split(size)]
    logits, seen = (torch.cat(each) for each in zip(*parts, strict=True))
    sound = torch.isfinite(logits).all(1)
    if estimator is None:
        nothing = torch.zeros(len(images))
        distances = Distances(logits.argmax(1), nothing, nothing.bool())
    else:
        distances = estimator(version.model, images)
        _check_labels(logits, distances.labels, sound)
    labels = torch.where(sound, distances.labels, NO_ANSWER)
    logits = torch.where(sound[:, None], logits, 0.0)
    bad = int((~sound).sum())
    problem = f"logits of {bad} of {len(images)} inputs are NaN or infinite" if bad else ""
    steady, trouble = _steadiness(version, images, labels, size) if "stability" in needs else (None, "")
    problem = "; ".join(filter(None, (problem, trouble)))
    fault: FaultKind | None = "not finite" if bad else None
    health = VersionHealth(version.name, int((labels != NO_ANSWER).sum()), len(images), problem, fault)
    return Answers(logits, seen, Distances(labels, distances.size, distances.found & sound), health, steady)


def _steadiness(version: Version, images: Tensor, labels: Tensor, size: int) -> tuple[Tensor, str]:
    """Stability (B,), and what went wrong: an answer that came must not be lost for what comes after it."""
    try:
        return stability(version.model, images, labels, version.bounds, size), ""
    except Exception as error:  # a part of the same isolation
        return _unknown(labels), f"its stability is not known: {type(error).__name__}: {error}"


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


def no_answers(name: str, classes: int, asked: int, problem: str, fault: FaultKind | None) -> Answers:
    """Of a version that failed on all B inputs that it was asked."""
    nothing = torch.zeros(asked)
    labels = torch.full((asked,), NO_ANSWER)
    logits = torch.zeros(asked, classes, dtype=torch.float64)
    health = VersionHealth(name, 0, asked, problem, fault)
    return Answers(logits, torch.zeros(asked, 0), Distances(labels, nothing, nothing.bool()), health, nothing)
