"""From logits and features to opinions: centred log-probabilities, as sharp as calibration inputs bear out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from deepfailguard.predictor.joint.heads import SHRINKAGES, FeatureHead, fit_head
from deepfailguard.types import Evidence

__all__ = ["Opinions", "Voice", "fit_sharpness", "fit_voice", "listen", "opinion"]

_FLOOR: Final = -12.0  # no version is surer than this of a class's absence: one wrong certainty would silence the rest
_SHARPEST: Final = 1e3  # and its inverse: the range of sharpness
_GRID, _ROUNDS = 25, 4


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


@dataclass(frozen=True, slots=True)
class Opinions:
    """Opinions of N versions on B inputs.

    Attributes:
        plain: (B, K) float64, the mean of the probabilities of those that answered.
        own: (B, N, K) float64, what each version says.
        second: (B, N, K) float64, what the head on its features says; zero without one.
        strangeness: (B, N) float64, log of the distance to the nearest class mean over the usual one.
        answered: (B, N) bool, which versions answered.
    """

    plain: Tensor
    own: Tensor
    second: Tensor
    strangeness: Tensor
    answered: Tensor

    @property
    def all(self) -> Tensor:
        """(B, 1 + 2 N, K) float64, the plain mean first."""
        return torch.cat([self.plain[:, None], self.own, self.second], 1)

    def of_versions(self, columns: Sequence[int]) -> "Opinions":
        """Those of some of the versions only."""
        some = list(columns)
        own, answered = self.own[:, some], self.answered[:, some]
        return Opinions(_mean(own, answered), own, self.second[:, some], self.strangeness[:, some], answered)

    @classmethod
    def put(cls, parts: "list[tuple[Tensor, Opinions]]") -> "Opinions":
        """Several parts as one, each at its positions; together they make up 0..B-1."""
        order = torch.cat([rows for rows, _ in parts]).argsort()
        return cls(*(torch.cat([getattr(part, name) for _, part in parts])[order] for name in cls.__slots__))


def opinion(log_probabilities: Tensor) -> Tensor:
    """Log-probabilities (B, K), not below a floor, less their mean."""
    kept = log_probabilities.clamp_min(_FLOOR)
    return kept - kept.mean(1, keepdim=True)


def fit_sharpness(scores: Tensor, truth: Tensor) -> float:
    """The factor > 0 of scores (M, K) whose softmax has the smallest log loss (one over the "temperature")."""
    low, high = -torch.tensor(_SHARPEST).log().item(), torch.tensor(_SHARPEST).log().item()
    best = 0.0
    for _ in range(_ROUNDS):
        grid = torch.linspace(low, high, _GRID, dtype=torch.float64)
        losses = [_log_loss(scores * float(value), truth) for value in grid.exp()]
        best = float(grid[int(torch.tensor(losses).argmin())])
        step = (high - low) / (_GRID - 1)
        low, high = best - step, best + step
    return float(torch.tensor(best, dtype=torch.float64).exp())


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
        loss = _log_loss(said * factor, truth)
        if best is None or loss < best[0]:
            best = (loss, shrinkage, factor, heads, float(distance.median()))
    assert best is not None
    _, shrinkage, factor, heads, usual = best
    whole = fit_head(features, truth, classes, shrinkage)
    usual = max(usual, torch.finfo(torch.float64).tiny)
    return (
        Voice(sharpness, whole, factor, usual),
        [Voice(sharpness, head, factor, usual) for head in heads],
    )


def listen(voices: list[Voice], evidence: Evidence, classes: int) -> Opinions:
    """The opinions of all versions; of one that did not answer they are zero, which says nothing."""
    own, second, strange = [], [], []
    for column, voice in enumerate(voices):
        answered = evidence.answered[:, column]
        said, strangeness = _second(voice, _features(evidence, column), classes, len(evidence))
        logits = _logits(evidence)[:, column].double().nan_to_num(0.0)
        heard = opinion((logits * voice.sharpness).log_softmax(1))
        own.append(torch.where(answered[:, None], heard, 0.0))
        second.append(torch.where(answered[:, None], said, 0.0))
        strange.append(torch.where(answered, strangeness, 0.0))
    voted = torch.stack(own, 1)
    return Opinions(
        _mean(voted, evidence.answered), voted, torch.stack(second, 1), torch.stack(strange, 1), evidence.answered
    )


def _mean(own: Tensor, answered: Tensor) -> Tensor:
    """The opinion (B, K) that is the mean of the probabilities of those (B, N) that answered."""
    total = (own.softmax(2) * answered[:, :, None]).sum(1)
    return opinion((total / answered.sum(1, keepdim=True).clamp_min(1)).clamp_min(math.exp(_FLOOR)).log())


def _second(voice: Voice, features: Tensor, classes: int, inputs: int) -> tuple[Tensor, Tensor]:
    if voice.head is None or features.shape[1] != len(voice.head.mean):
        return torch.zeros(inputs, classes, dtype=torch.float64), torch.zeros(inputs, dtype=torch.float64)
    said, distance = voice.head(features)
    said = opinion((said * voice.head_sharpness).log_softmax(1))
    return said, (distance / voice.usual).clamp_min(torch.finfo(torch.float64).tiny).log()


def _cross(heads: list[FeatureHead], features: Tensor, fold: Tensor) -> tuple[Tensor, Tensor]:
    classes = len(heads[0].prior)
    said = torch.zeros(len(features), classes, dtype=torch.float64)
    distance = torch.zeros(len(features), dtype=torch.float64)
    for number, head in enumerate(heads):
        rows = (fold == number).nonzero().squeeze(1)
        said[rows], distance[rows] = head(features[rows])
    return said, distance


def _log_loss(scores: Tensor, truth: Tensor) -> float:
    return float(torch.nn.functional.cross_entropy(scores, truth))


def _logits(evidence: Evidence) -> Tensor:
    assert evidence.logits is not None  # the caller has checked that it is there
    return evidence.logits


def _features(evidence: Evidence, column: int) -> Tensor:
    assert evidence.features is not None  # the caller has checked that it is there
    return evidence.features[column]
