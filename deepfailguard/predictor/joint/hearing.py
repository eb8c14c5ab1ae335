"""Hearing all versions on the calibration inputs, once: what every joint predictor learns from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from deepfailguard.errors import DataFormatError
from deepfailguard.predictor.checks import check_calibration
from deepfailguard.predictor.class_posterior import heard, logits_of
from deepfailguard.predictor.joint.opinions import Opinions, Voice, fit_voice, listen
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

    def rehearsing(self, kept: Tensor) -> "Hearing":
        """What is heard if only some of the changed inputs, (R,) bool, were rehearsed."""
        changed, truth, source = self.changed[kept], self.changed_truth[kept], self.source[kept]
        return replace(self, changed=changed, changed_truth=truth, source=source)


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
    fitted = [_fit_voice(evidence, column, truth, classes, fold) for column in range(evidence.versions)]
    folds = [list(voices) for voices in zip(*(voices for _, voices in fitted), strict=True)]
    if rehearsed is None:
        nothing = torch.zeros(0, dtype=torch.int64)
        rehearsed = Rehearsed(evidence[:0], nothing, nothing)
    return Hearing(
        voices=tuple(voice for voice, _ in fitted),
        usual=_cross_listen(folds, evidence, fold, classes),
        truth=truth,
        changed=_cross_listen(folds, rehearsed.evidence.cpu(), fold[rehearsed.source.cpu()], classes),
        changed_truth=rehearsed.truth.cpu(),
        source=rehearsed.source.cpu(),
    )


def classes_of(evidence: Evidence) -> int:
    """K.

    Raises:
        DataFormatError: the evidence holds no logits or no features.
    """
    if evidence.features is None:
        raise DataFormatError("this predictor needs evidence with logits and features; ask the versions for them")
    return int(logits_of(evidence).shape[2])


def _fit_voice(evidence: Evidence, column: int, truth: Tensor, classes: int, fold: Tensor) -> tuple[Voice, list[Voice]]:
    assert evidence.features is not None  # classes_of has seen to it
    rows, folds = heard(evidence)[:, column].nonzero().squeeze(1), int(fold.max()) + 1
    logits, features = logits_of(evidence)[rows, column], evidence.features[column][rows]
    return fit_voice(logits, features, truth[rows], classes, fold[rows], folds)


def _cross_listen(folds: list[list[Voice]], evidence: Evidence, fold: Tensor, classes: int) -> Opinions:
    """Opinions on inputs by the voices that were fitted without them (or what they were made of)."""
    rows = [(fold == number).nonzero().squeeze(1) for number in range(len(folds))]
    return Opinions.put([(r, listen(voices, evidence[r], classes)) for r, voices in zip(rows, folds, strict=True)])
