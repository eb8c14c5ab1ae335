"""Hearing all versions on the calibration inputs, once: what every joint predictor learns from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from deepfailguard.errors import DataFormatError
from deepfailguard.predictor.checks import check_calibration
from deepfailguard.predictor.class_posterior import heard, logits_of
from deepfailguard.predictor.joint.opinions import Opinions, Voice, fit_voice, harden, listen
from deepfailguard.seeding import generator
from deepfailguard.types import Evidence, Rehearsed

__all__ = ["Hearing", "classes_of", "hear"]

_FOLDS: Final = 4


@dataclass(frozen=True, slots=True)
class Hearing:
    """Opinions of N versions on the calibration inputs, by voices that were fitted without the input in question.

    Attributes:
        voices: of the versions, fitted on all inputs, for later.
        usual: on the M calibration inputs.
        truth: (M,) int64.
        changed: on the R rehearsed inputs, R >= 0.
        changed_truth: (R,) int64.
        source: (R,) int64, the calibration input that each was made from.
    """

    voices: tuple[Voice, ...]
    usual: Opinions
    truth: Tensor
    changed: Opinions
    changed_truth: Tensor
    source: Tensor

    def of_versions(self, columns: Sequence[int]) -> "Hearing":
        """What is heard of some of the versions only."""
        voices = tuple(self.voices[column] for column in columns)
        usual, changed = self.usual.of_versions(columns), self.changed.of_versions(columns)
        return Hearing(voices, usual, self.truth, changed, self.changed_truth, self.source)

    def take(self, chosen: Tensor) -> "Hearing":
        """What is heard on some calibration inputs, (M,) bool, and on what was made of them."""
        made = chosen[self.source]
        usual, truth = self.usual[chosen], self.truth[chosen]
        source = (chosen.cumsum(0) - 1)[self.source[made]]
        return Hearing(self.voices, usual, truth, self.changed[made], self.changed_truth[made], source)


def hear(evidence: Evidence, truth: Tensor, rehearsed: Rehearsed | None) -> Hearing:
    """Fit the versions' voices and hear them, on the CPU.

    Raises:
        DataFormatError: the evidence holds no logits or no features, or a true class has no logit.
    """
    check_calibration(evidence, truth)
    evidence, truth, classes = evidence.cpu(), truth.cpu(), classes_of(evidence)
    if int(truth.max()) >= classes:
        raise DataFormatError(f"true classes go up to {int(truth.max())}, but there are logits of {classes} classes")
    fold = torch.randperm(len(truth), generator=generator(0, "joint folds")) % min(_FOLDS, max(1, len(truth) // 2))
    usual = _Heard(evidence, truth, fold)
    changed = _Heard.changed_of(usual, rehearsed)
    fitted = [_fit_voice(usual, changed, column, classes) for column in range(evidence.versions)]
    folds = [list(voices) for voices in zip(*(voices for _, voices in fitted), strict=True)]
    return Hearing(
        voices=tuple(voice for voice, _ in fitted),
        usual=_cross_listen(folds, usual, classes),
        truth=truth,
        changed=_cross_listen(folds, changed, classes),
        changed_truth=changed.truth,
        source=torch.zeros(0, dtype=torch.int64) if rehearsed is None else rehearsed.source.cpu(),
    )


def classes_of(evidence: Evidence) -> int:
    """K.

    Raises:
        DataFormatError: the evidence holds no logits or no features.
    """
    if evidence.features is None:
        raise DataFormatError("this predictor needs evidence with logits and features; ask the versions for them")
    return int(logits_of(evidence).shape[2])


@dataclass(frozen=True, slots=True)
class _Heard:
    """Inputs that voices learn from, and the fold of each."""

    evidence: Evidence
    truth: Tensor
    fold: Tensor

    @classmethod
    def changed_of(cls, usual: "_Heard", rehearsed: Rehearsed | None) -> "_Heard":
        """The rehearsed inputs, each in the fold of the input that it was made from; none if nothing was rehearsed."""
        if rehearsed is None:
            return cls(usual.evidence[:0], usual.truth[:0], usual.fold[:0])
        return cls(rehearsed.evidence.cpu(), rehearsed.truth.cpu(), usual.fold[rehearsed.source.cpu()])

    def features(self, column: int) -> tuple[Tensor, Tensor, Tensor]:
        """What a version's last layer got where it has a say; the true classes and folds there."""
        assert self.evidence.features is not None  # classes_of has seen to it
        rows = heard(self.evidence)[:, column]
        return self.evidence.features[column][rows], self.truth[rows], self.fold[rows]


def _fit_voice(usual: _Heard, changed: _Heard, column: int, classes: int) -> tuple[Voice, list[Voice]]:
    """A version's voice, and for each fold the one that was fitted on the other folds."""
    logits = logits_of(usual.evidence)[heard(usual.evidence)[:, column], column]
    features, truth, fold = usual.features(column)
    voice, others = fit_voice(logits, features, truth, classes, fold, int(usual.fold.max()) + 1)
    seen = changed.features(column)
    if not len(seen[0]) or seen[0].shape[1] != features.shape[1]:  # it failed on all that were rehearsed
        return voice, others
    both = [torch.cat(each) for each in zip((features, truth, fold), seen, strict=True)]
    return harden(voice, others, classes, *both)


def _cross_listen(folds: list[list[Voice]], asked: _Heard, classes: int) -> Opinions:
    """Opinions on inputs by the voices that were fitted without them (or what they were made of)."""
    rows = [(asked.fold == number).nonzero().squeeze(1) for number in range(len(folds))]
    return Opinions.put([(r, listen(v, asked.evidence[r], classes)) for r, v in zip(rows, folds, strict=True)])
