"""What one request gets of a batch's verdict."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from deepfailguard.guard.verdict import Ground, Verdict
from deepfailguard.types import NO_ANSWER

__all__ = ["Answer", "Batch", "batch_of", "joined", "part_of"]

_WEAKEST: Final[tuple[Ground, ...]] = get_args(Ground)  # from the strongest to the weakest

_PLAIN: Final = (
    "labels",
    "abstained",
    "failure_probability",
    "probabilities",
    "version_labels",
    "version_failure_probability",
    "weights",
)

_OTHERWISE: Final[dict[str, Any]] = {
    "version_labels": NO_ANSWER,
    "version_failure_probability": 1.0,
    "weights": 0.0,
    "distance": np.nan,
}  # of a version that was not there yet when a part of a long request was answered


@dataclass(frozen=True, slots=True)
class Batch:
    """A verdict in the form that requests are answered from.

    Attributes:
        verdict: on all images of the batch.
        outputs: by name, arrays whose first dimension is the batch: `labels` int64, `abstained` bool,
            `failure_probability` float64, `probabilities` (B, K) float64, `version_labels` (B, N) int64,
            `version_failure_probability` (B, N) float64, `weights` (B, N) float64, and `distance` (B, N) float32,
            NaN where no change was found that flips the answer.
        versions: names, in the order of the N columns.
        degraded: as the verdict says.
    """

    verdict: Verdict
    outputs: dict[str, NDArray[Any]]
    versions: tuple[str, ...]
    degraded: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """The guard's answer to one request of B images.

    Attributes:
        outputs: as in `Batch`, of these images alone.
        versions: names, in the order of the N columns.
        degraded: whether a version was missing.
        ground: what the answer rests on.
        problems: what is wrong with an image, by its position in the request.
        batch: the batch in which it (or its first part) was answered.
        start: where in that batch it begins.
    """

    outputs: dict[str, NDArray[Any]]
    versions: tuple[str, ...]
    degraded: bool
    ground: Ground
    problems: dict[int, str]
    batch: Batch
    start: int


def batch_of(verdict: Verdict) -> Batch:
    """Arrays from a verdict's tensors, once for all requests of the batch."""
    distance = np.where(_array(verdict.found), _array(verdict.distance).astype(np.float32), np.float32(np.nan))
    outputs = {name: _array(getattr(verdict, name)) for name in _PLAIN} | {"distance": distance}
    versions = tuple(health.name for health in verdict.health)
    return Batch(verdict, outputs, versions, verdict.degraded)


def _array(tensor: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.detach().cpu().numpy()
    return array


def part_of(batch: Batch, start: int, stop: int) -> Answer:
    """The answer to the images from `start` to `stop` of a batch."""
    verdict = batch.verdict
    problems = {i - start: text for i, text in verdict.problems.items() if start <= i < stop}
    outputs = {name: array[start:stop] for name, array in batch.outputs.items()}
    return Answer(outputs, batch.versions, batch.degraded, verdict.ground, problems, batch, start)


def joined(parts: Sequence[Answer]) -> Answer:
    """The answer to a request that was answered in several batches."""
    if len(parts) == 1:
        return parts[0]
    versions = tuple(dict.fromkeys(name for part in parts for name in part.versions))
    columns = [_with_columns(part, versions) for part in parts]
    outputs = {name: np.concatenate([each[name] for each in columns]) for name in parts[0].outputs}
    problems: dict[int, str] = {}
    before = 0
    for part in parts:
        problems |= {before + position: text for position, text in part.problems.items()}
        before += len(part.outputs["labels"])
    weakest = max((part.ground for part in parts), key=_WEAKEST.index)
    return replace(
        parts[0],
        outputs=outputs,
        versions=versions,
        degraded=any(part.degraded for part in parts),
        ground=weakest,
        problems=problems,
    )


def _with_columns(part: Answer, versions: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    """A part's outputs with a column for each version: one may have been swapped between two parts."""
    if part.versions == versions:
        return part.outputs
    places = [versions.index(name) for name in part.versions]
    outputs = dict(part.outputs)
    for name, nothing in _OTHERWISE.items():
        whole = np.full((len(outputs[name]), len(versions)), nothing, dtype=outputs[name].dtype)
        whole[:, places] = outputs[name]
        outputs[name] = whole
    return outputs
