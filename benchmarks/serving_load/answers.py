"""What the server answered, and whether that is what the same guard says in process."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.serving_load.connections import Reply
from deepfailguard.guard.guarded import GuardedPredictor
from deepfailguard.guard.verdict import Verdict
from deepfailguard.types import NO_ANSWER

__all__ = ["Answer", "Columns", "Expected", "answer_of", "answer_to_picture"]

Columns = tuple[int, ...]
"""Positions of versions, in order."""

_TYPES: Final[dict[str, Any]] = {"INT64": np.int64, "BOOL": np.bool_, "FP64": np.float64, "FP32": np.float32}
_DECIDED: Final = ("all versions", "versions left")
_CLEAR: Final = 1e-3  # between the two most probable classes: rounding depends on the batch
_NEAR: Final = 1e-3


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request of B images got.

    Attributes:
        labels: (B,) int64.
        abstained: (B,) bool.
        failure_probability: (B,) float64.
        version_labels: (B, N) int64, -1 where a version gave no answer.
        degraded: whether a version was missing.
        ground: what it rests on.
        problems: positions of images with which something is wrong.
    """

    labels: NDArray[Any]
    abstained: NDArray[Any]
    failure_probability: NDArray[Any]
    version_labels: NDArray[Any]
    degraded: bool
    ground: str
    problems: frozenset[int]

    @property
    def columns(self) -> Columns:
        """The versions that answered some image."""
        return tuple(int(column) for column in (self.version_labels != NO_ANSWER).any(0).nonzero()[0])


def answer_of(reply: Reply) -> Answer:
    """From an answer of the Open Inference Protocol with binary tensors."""
    told = json.loads(reply.body[: reply.json_length])
    arrays, place = {}, reply.json_length or 0
    for output in told["outputs"]:
        size = output["parameters"]["binary_data_size"]
        values = np.frombuffer(reply.body[place : place + size], _TYPES[output["datatype"]])
        arrays[output["name"]] = values.reshape(output["shape"])
        place += size
    parameters = told["parameters"]
    return Answer(
        labels=arrays["labels"],
        abstained=arrays["abstained"],
        failure_probability=arrays["failure_probability"],
        version_labels=arrays["version_labels"],
        degraded=parameters["degraded"],
        ground=parameters["ground"],
        problems=frozenset(map(int, json.loads(parameters["problems"]))),
    )


def answer_to_picture(reply: Reply) -> Answer:
    """From an answer to a picture."""
    told = json.loads(reply.body)
    return Answer(
        labels=np.array([told["label"]]),
        abstained=np.array([told["abstained"]]),
        failure_probability=np.array([told["failure_probability"]]),
        version_labels=np.array([[version["label"] for version in told["versions"]]]),
        degraded=told["degraded"],
        ground=told["ground"],
        problems=frozenset(),
    )


class Expected:
    """What must come out for some images, from whichever versions it may be.

    Args:
        guard: the one that is served, sound.
        images: (L, C, H, W) float32.
        whole: sets of versions that are not degraded; all versions if None.

    Attributes:
        farthest: by how much a failure probability differed from the expected one at most.
    """

    def __init__(self, guard: GuardedPredictor, images: NDArray[Any], whole: Sequence[Columns] | None = None) -> None:
        self._guard = guard
        self._names = guard.saved.card.names
        self._images = torch.from_numpy(images)
        everybody = tuple(range(len(self._names)))
        self.whole = frozenset(whole or [everybody])
        self._known: dict[Columns, Verdict] = {}
        self._versions = self.of(everybody).version_labels.numpy()
        self.farthest = 0.0

    def of(self, columns: Columns) -> Verdict:
        """The verdict of exactly these versions on all images."""
        if columns not in self._known:
            out = [name for column, name in enumerate(self._names) if column not in columns]
            guard = self._guard.without(out) if out else self._guard
            self._known[columns] = guard(self._images)
        return self._known[columns]

    def problem(self, rows: NDArray[Any], answer: Answer) -> str:
        """What is wrong with an answer; empty if nothing is.

        Args:
            rows: (B,) int64 of the images; -1 for those that are not sound.
            answer: to them.
        """
        if len(answer.labels) != len(rows):
            return f"{len(answer.labels)} answers to {len(rows)} images"
        bad, good = rows < 0, rows >= 0
        if answer.problems != frozenset(bad.nonzero()[0].tolist()):
            return f"problems at {sorted(answer.problems)}, expected them at {bad.nonzero()[0].tolist()}"
        if not self._unjudged(answer, bad):
            return "an image that is not sound was judged"
        if not good.any():
            return ""
        if answer.degraded != (answer.columns not in self.whole):
            return f"degraded is {answer.degraded} with answers of {answer.columns}"
        return self._wrong(rows[good], answer, good)

    def _unjudged(self, answer: Answer, bad: NDArray[Any]) -> bool:
        told = (answer.labels[bad] == NO_ANSWER) & answer.abstained[bad] & (answer.failure_probability[bad] == 1)
        return bool(told.all() and (answer.version_labels[bad] == NO_ANSWER).all())

    def _wrong(self, rows: NDArray[Any], answer: Answer, good: NDArray[Any]) -> str:
        columns = list(answer.columns)
        if not columns:
            return "no version answered"
        if not np.array_equal(answer.version_labels[good][:, columns], self._versions[rows][:, columns]):
            return "a version said something else"
        if answer.ground not in _DECIDED:
            return f"it rests on {answer.ground!r}"
        expected = self.of(answer.columns)
        best = expected.probabilities[rows].topk(2).values
        clear = (best[:, 0] - best[:, 1] > _CLEAR).numpy()
        if not np.array_equal(answer.labels[good][clear], expected.labels.numpy()[rows][clear]):
            return "another label"
        if not np.array_equal(answer.abstained[good], expected.abstained.numpy()[rows]):
            return "it abstains elsewhere"
        off = np.abs(answer.failure_probability[good] - expected.failure_probability.numpy()[rows])[clear].max(
            initial=0
        )
        self.farthest = max(self.farthest, float(off))
        return "another failure probability" if off > _NEAR else ""
