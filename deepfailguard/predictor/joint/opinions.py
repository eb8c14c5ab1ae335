"""From logits and features to opinions: centred log-probabilities, as sharp as calibration inputs bear out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Final

import torch
from torch import Tensor

from deepfailguard.predictor.class_posterior import FLOOR, fit_sharpness, heard, log_loss, logits_of, opinion
from deepfailguard.predictor.joint.heads import SHRINKAGES, FeatureHead, fit_head
from deepfailguard.predictor.states import below, record_of, tensors_of, under
from deepfailguard.types import Evidence

__all__ = ["Opinions", "Voice", "fit_voice", "listen"]

_TINY: Final = torch.finfo(torch.float64).tiny


@dataclass(frozen=True, slots=True)
class Voice:
    """What turns one version's evidence into opinions.

    Attributes:
        sharpness: factor > 0 of the logits.
        head: on its features; None where it has none, or none that fit together.
        head_sharpness: factor of the head's log-probabilities.
        usual: median distance of calibration inputs to the nearest class mean of the head.
    """

    sharpness: float
    head: FeatureHead | None
    head_sharpness: float
    usual: float

    def state(self) -> dict[str, Tensor]:
        """Everything, as named tensors."""
        factors = torch.tensor([self.sharpness, self.head_sharpness, self.usual], dtype=torch.float64)
        return {"factors": factors} | ({} if self.head is None else under("head", tensors_of(self.head)))

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> "Voice":
        """Take back what `state` returned."""
        sharpness, head_sharpness, usual = state["factors"].tolist()
        head = below("head", state)
        return cls(sharpness, record_of(FeatureHead, head) if head else None, head_sharpness, usual)


@dataclass(frozen=True, slots=True)
class Opinions:
    """Opinions of N versions on B inputs.

    Attributes:
        plain: (B, K) float64, the mean of the probabilities of those that answered.
        own: (B, N, K) float64, what each version says.
        second: (B, N, K) float64, what the head on its features says; zero without one.
        strangeness: (B, N) float64, log of the distance to the nearest class mean over the usual one.
        heard: (B, N) bool, which versions have a say.
    """

    plain: Tensor
    own: Tensor
    second: Tensor
    strangeness: Tensor
    heard: Tensor

    @property
    def all(self) -> Tensor:
        """(B, 1 + 2 N, K) float64, the plain mean first."""
        return torch.cat([self.plain[:, None], self.own, self.second], 1)

    def of_versions(self, columns: Sequence[int]) -> "Opinions":
        """Those of some of the versions only."""
        some = list(columns)
        own, has_say = self.own[:, some], self.heard[:, some]
        return Opinions(_mean(own, has_say), own, self.second[:, some], self.strangeness[:, some], has_say)

    def __getitem__(self, rows: Tensor) -> "Opinions":
        return Opinions(*(getattr(self, field.name)[rows] for field in fields(self)))

    @classmethod
    def put(cls, parts: "list[tuple[Tensor, Opinions]]") -> "Opinions":
        """Several parts as one, each at its positions; together they make up 0..B-1."""
        order = torch.cat([rows for rows, _ in parts]).argsort()
        return cls(
            *(
                torch.cat([getattr(part, name) for _, part in parts])[order]
                for name in (field.name for field in fields(cls))
            )
        )


def fit_voice(
    logits: Tensor, features: Tensor, truth: Tensor, classes: int, fold: Tensor, folds: int
) -> tuple[Voice, list[Voice]]:
    """A version's voice, and for each fold the voice that was fitted on the other folds.

    What is learned from opinions must be learned from those of the latter: a head knows the inputs that it
    was fitted on too well.

    Args:
        logits: (M, K) of the calibration inputs that the version answered.
        features: (M, F) of them.
        truth: (M,) int64.
        classes: K.
        fold: (M,) int64, the fold of each.
        folds: how many there are.
    """
    sharpness = fit_sharpness(logits.double(), truth) if len(truth) else 1.0
    if features.shape[1] == 0 or folds < 2 or bool((torch.bincount(fold, minlength=folds) == len(fold)).any()):
        plain = Voice(sharpness, None, 1.0, 1.0)
        return plain, [plain] * folds
    best: tuple[float, float, float, list[FeatureHead], float] | None = None
    for shrinkage in SHRINKAGES:
        heads = [fit_head(features[fold != k], truth[fold != k], classes, shrinkage) for k in range(folds)]
        said, distance = _cross(heads, features, fold)
        factor = fit_sharpness(said, truth)
        loss = log_loss(said * factor, truth)
        if best is None or loss < best[0]:
            best = (loss, shrinkage, factor, heads, float(distance.median()))
    assert best is not None
    _, shrinkage, factor, heads, usual = best
    whole = fit_head(features, truth, classes, shrinkage)
    usual = max(usual, _TINY)
    return (
        Voice(sharpness, whole, factor, usual),
        [Voice(sharpness, head, factor, usual) for head in heads],
    )


def listen(voices: Sequence[Voice], evidence: Evidence, classes: int) -> Opinions:
    """The opinions of all versions; of one that has no say (`heard`) they are zero, which says nothing."""
    has_say, own, second, strange = heard(evidence), [], [], []
    for column, voice in enumerate(voices):
        rows = has_say[:, column]
        logits = torch.where(rows[:, None], logits_of(evidence)[:, column].double(), 0.0)
        own.append(opinion((logits * voice.sharpness).log_softmax(1)))
        said, strangeness = _second(voice, _features(evidence, column), classes, len(evidence))
        second.append(torch.where(rows[:, None], said, 0.0))
        strange.append(torch.where(rows, strangeness, 0.0))
    voted = torch.stack(own, 1)
    return Opinions(_mean(voted, has_say), voted, torch.stack(second, 1), torch.stack(strange, 1), has_say)


def _mean(own: Tensor, has_say: Tensor) -> Tensor:
    """The opinion (B, K) that is the mean of the probabilities of those (B, N) that have a say."""
    total = (own.softmax(2) * has_say[:, :, None]).sum(1)
    return opinion((total / has_say.sum(1, keepdim=True).clamp_min(1)).clamp_min(math.exp(FLOOR)).log())


def _second(voice: Voice, features: Tensor, classes: int, inputs: int) -> tuple[Tensor, Tensor]:
    if voice.head is None or features.shape[1] != len(voice.head.mean):
        return torch.zeros(inputs, classes, dtype=torch.float64), torch.zeros(inputs, dtype=torch.float64)
    said, distance = voice.head(features)
    said = opinion((said * voice.head_sharpness).log_softmax(1))
    return said, (distance / voice.usual).clamp_min(_TINY).log()


def _cross(heads: list[FeatureHead], features: Tensor, fold: Tensor) -> tuple[Tensor, Tensor]:
    classes = len(heads[0].prior)
    said = torch.zeros(len(features), classes, dtype=torch.float64)
    distance = torch.zeros(len(features), dtype=torch.float64)
    for number, head in enumerate(heads):
        rows = (fold == number).nonzero().squeeze(1)
        said[rows], distance[rows] = head(features[rows])
    return said, distance


def _features(evidence: Evidence, column: int) -> Tensor:
    assert evidence.features is not None  # the caller has checked that it is there
    return evidence.features[column]
