"""From logits and features to opinions: centred log-probabilities, as sharp as calibration inputs bear out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Final

import torch
from torch import Tensor

from deepfailguard.predictor.class_posterior import FLOOR, fit_sharpness, heard, log_loss, logits_of, opinion
from deepfailguard.predictor.joint.heads import SHRINKAGES, FeatureHead, fit_head
from deepfailguard.predictor.states import below, record_of, tensors_of, under
from deepfailguard.types import Evidence

__all__ = ["Opinions", "Voice", "fit_voice", "harden", "listen"]

_TINY: Final = torch.finfo(torch.float64).tiny
_HARDENED: Final = 0.4  # shrinkage of heads that see changed inputs too; all that was measured was measured with it


@dataclass(frozen=True, slots=True)
class Voice:
    """What turns one version's evidence into opinions.

    Attributes:
        sharpness: factor > 0 of the logits.
        head: on its features; None where it has none, or none that fit together.
        head_sharpness: factor of the head's log-probabilities.
        usual: median distance of calibration inputs to the nearest class mean of the head.
        hardened: a head that was fitted on changed calibration inputs, too; None where nothing was rehearsed.
        hardened_sharpness: factor of that head's log-probabilities.
    """

    sharpness: float
    head: FeatureHead | None
    head_sharpness: float
    usual: float
    hardened: FeatureHead | None = None
    hardened_sharpness: float = 1.0

    def state(self) -> dict[str, Tensor]:
        """Everything, as named tensors."""
        factors = [self.sharpness, self.head_sharpness, self.usual]
        heads = {name: head for name in ("head", "hardened") if (head := getattr(self, name)) is not None}
        tensors = {"factors": torch.tensor(factors, dtype=torch.float64)}
        tensors["hardened_sharpness"] = torch.tensor(self.hardened_sharpness, dtype=torch.float64)
        return tensors | {k: v for name, head in heads.items() for k, v in under(name, tensors_of(head)).items()}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> "Voice":
        """Take back what `state` returned."""
        sharpness, head_sharpness, usual = state["factors"].tolist()
        parts = [below(name, state) for name in ("head", "hardened")]
        head, hardened = [record_of(FeatureHead, part) if part else None for part in parts]
        return cls(sharpness, head, head_sharpness, usual, hardened, float(state["hardened_sharpness"]))


@dataclass(frozen=True, slots=True)
class Opinions:
    """Opinions of N versions on B inputs.

    Attributes:
        plain: (B, K) float64, the mean of the probabilities of those that answered.
        own: (B, N, K) float64, what each version says.
        second: (B, N, K) float64, what the head on its features says; zero without one.
        hardened: (B, N, K) float64, what the head that has seen changed inputs says; zero without one.
        strangeness: (B, N) float64, log of the distance to the nearest class mean over the usual one.
        heard: (B, N) bool, which versions have a say.
    """

    plain: Tensor
    own: Tensor
    second: Tensor
    hardened: Tensor
    strangeness: Tensor
    heard: Tensor

    @property
    def of_usual(self) -> Tensor:
        """Those for inputs like the calibration's: (B, 1 + 2 N, K) float64, the plain mean first."""
        return torch.cat([self.plain[:, None], self.own, self.second], 1)

    @property
    def of_changed(self) -> Tensor:
        """Those for changed inputs: (B, 1 + 3 N, K) float64, the plain mean first."""
        return torch.cat([self.of_usual, self.hardened], 1)

    def of_versions(self, columns: Sequence[int]) -> "Opinions":
        """Those of some of the versions only."""
        some = list(columns)
        own, has_say = self.own[:, some], self.heard[:, some]
        second, hardened = self.second[:, some], self.hardened[:, some]
        return Opinions(_mean(own, has_say), own, second, hardened, self.strangeness[:, some], has_say)

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


def harden(
    voice: Voice, others: Sequence[Voice], classes: int, features: Tensor, truth: Tensor, fold: Tensor
) -> tuple[Voice, list[Voice]]:
    """A version's voice, and those of the folds, with heads that have seen changed inputs as well.

    What such a head learns of some changes helps with others: under a blur that it never saw, it is right more often
    than the head that was fitted on usual inputs alone. On usual inputs it is right less often.

    Args:
        voice: fitted on all calibration inputs.
        others: for each fold the voice that was fitted on the other folds.
        classes: K.
        features: (M, F) of calibration inputs and of changed ones.
        truth: (M,) int64 of them.
        fold: (M,) int64 of them; a changed input has that of the input that it was made from.
    """
    if voice.head is None:
        return voice, list(others)
    heads = [fit_head(features[fold != k], truth[fold != k], classes, _HARDENED) for k in range(len(others))]
    factor = fit_sharpness(_cross(heads, features, fold)[0], truth)
    whole = fit_head(features, truth, classes, _HARDENED)
    return (
        replace(voice, hardened=whole, hardened_sharpness=factor),
        [replace(v, hardened=head, hardened_sharpness=factor) for v, head in zip(others, heads, strict=True)],
    )


def listen(voices: Sequence[Voice], evidence: Evidence, classes: int) -> Opinions:
    """The opinions of all versions; of one that has no say (`heard`) they are zero, which says nothing."""
    has_say, parts = heard(evidence), list[tuple[Tensor, ...]]()
    for column, voice in enumerate(voices):
        rows, features = has_say[:, column], _features(evidence, column)
        logits = torch.where(rows[:, None], logits_of(evidence)[:, column].double(), 0.0)
        own = opinion((logits * voice.sharpness).log_softmax(1))
        second, strange = _of_head(voice.head, voice.head_sharpness, voice.usual, features, classes)
        hardened, _ = _of_head(voice.hardened, voice.hardened_sharpness, voice.usual, features, classes)
        said = [torch.where(rows[:, None], each, 0.0) for each in (second, hardened)]
        parts.append((own, *said, torch.where(rows, strange, 0.0)))
    own, second, hardened, strange = (torch.stack(each, 1) for each in zip(*parts, strict=True))
    return Opinions(_mean(own, has_say), own, second, hardened, strange, has_say)


def _mean(own: Tensor, has_say: Tensor) -> Tensor:
    """The opinion (B, K) that is the mean of the probabilities of those (B, N) that have a say."""
    total = (own.softmax(2) * has_say[:, :, None]).sum(1)
    return opinion((total / has_say.sum(1, keepdim=True).clamp_min(1)).clamp_min(math.exp(FLOOR)).log())


def _of_head(
    head: FeatureHead | None, sharpness: float, usual: float, features: Tensor, classes: int
) -> tuple[Tensor, Tensor]:
    """Opinions (B, K) and strangeness (B,); zero without a head that fits the features."""
    if head is None or features.shape[1] != len(head.mean):
        nothing = torch.zeros(len(features), classes, dtype=torch.float64)
        return nothing, nothing[:, 0]
    said, distance = head(features)
    return opinion((said * sharpness).log_softmax(1)), (distance / usual).clamp_min(_TINY).log()


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
