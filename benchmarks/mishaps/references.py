"""What a guard must answer, whichever of its versions are left: recorded before anything is broken."""

import itertools
from pathlib import Path

import torch
from torch import Tensor

from deepfailguard.guard.answering import verdict_of
from deepfailguard.guard.asking import Answers, ask
from deepfailguard.guard.guarded import GuardedPredictor
from deepfailguard.guard.places import silence
from deepfailguard.guard.saved import SavedGuard
from deepfailguard.guard.verdict import Verdict
from deepfailguard.identity import digest
from deepfailguard.store import load_tensors, save_tensors
from deepfailguard.types import NO_ANSWER

__all__ = ["References", "counted"]

Columns = tuple[int, ...]


def counted(verdict: Verdict) -> Columns:
    """Positions of the versions of which a verdict says that it rests on their answers."""
    if verdict.ground == "fallback":
        return ()
    return tuple(n for n, health in enumerate(verdict.health) if health.state == "serving" and health.asked)


class References:
    """Labels of the guard of every subset of the versions, and every version's own.

    Args:
        guard: sound.
        images: (L, C, H, W) of the load.
        folder: keeps the labels, so that a second run finds them.
    """

    def __init__(self, guard: GuardedPredictor, images: Tensor, folder: Path) -> None:
        self._guard = guard
        self._saved: dict[Columns, SavedGuard] = {}
        self._answers = [ask(version, None, images, guard.saved.predictor.needs) for version in guard.versions]
        self._partly: dict[tuple[Columns, Columns, int], int] = {}
        self.versions = torch.stack([each.distances.labels for each in self._answers], 1)
        self._labels = self._kept(folder, images)

    def expected(self, verdict: Verdict, rows: Tensor) -> Tensor:
        """(B,) labels that the guard of exactly those versions gives that answered, input by input.

        Args:
            verdict: on the images at `rows`; says who answered what.
            rows: (B,) int64.
        """
        columns = counted(verdict)
        if not columns:
            return torch.full((len(rows),), NO_ANSWER)
        expected = self._labels[columns][rows]
        silent = verdict.version_labels[:, list(columns)] == NO_ANSWER
        for place in silent.any(1).nonzero().flatten().tolist():
            without = tuple(column for column, said in zip(columns, silent[place].tolist(), strict=True) if said)
            expected[place] = self._partly_silent(columns, without, int(rows[place]))
        return expected

    def false_answers(self, verdict: Verdict, rows: Tensor) -> Tensor:
        """(B, N) bool, answers of versions in the verdict that are not what these say when they are sound."""
        return (verdict.version_labels != NO_ANSWER) & (verdict.version_labels != self.versions[rows])

    def _partly_silent(self, columns: Columns, without: Columns, row: int) -> int:
        key = (columns, without, row)
        if key not in self._partly:
            saved, quiet = self._of(columns), silence(len(self._guard.saved.card.classes), 1)
            answers = [quiet if column in without else _row(self._answers[column], row) for column in columns]
            self._partly[key] = int(verdict_of(saved, answers, torch.tensor([0]), 1).labels)
        return self._partly[key]

    def _of(self, columns: Columns) -> SavedGuard:
        """The guard of these versions, fitted when it is first needed."""
        if columns not in self._saved:
            names = self._guard.saved.card.names
            out = [name for column, name in enumerate(names) if column not in columns]
            self._saved[columns] = self._guard.without(out).saved if out else self._guard.saved
        return self._saved[columns]

    def _kept(self, folder: Path, images: Tensor) -> dict[Columns, Tensor]:
        everybody = range(len(self._guard.versions))
        subsets = [c for size in range(1, len(everybody) + 1) for c in itertools.combinations(everybody, size)]
        card = self._guard.saved.card
        key = digest([list(card.fingerprints), card.calibration_fingerprint, repr(images.double().sum(0).tolist())])
        path = folder / f"references-{key[:12]}.safetensors"
        if not path.is_file():
            rows = torch.arange(len(images))
            labels = {
                c: verdict_of(self._of(c), [self._answers[n] for n in c], rows, len(rows)).labels for c in subsets
            }
            save_tensors(path, {_name(columns): each for columns, each in labels.items()})
        tensors = load_tensors(path).tensors
        return {columns: tensors[_name(columns)] for columns in subsets}


def _name(columns: Columns) -> str:
    return "-".join(map(str, columns))


def _row(answers: Answers, row: int) -> Answers:
    given, one = answers.distances, slice(row, row + 1)
    steady = None if answers.stability is None else answers.stability[one]
    return Answers(answers.logits[one], answers.features[one], given[one], answers.health, steady)
