"""Inputs on which guard and majority vote part: who said what, and the image."""

import io
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import torch
from matplotlib.image import imsave
from numpy.typing import NDArray
from torch import Tensor

from deepfailguard.evaluation.records import Evaluation
from deepfailguard.evaluation.report.summary import majority_of
from deepfailguard.types import NO_ANSWER, Bounds

__all__ = ["Answer", "Example", "Kind", "find_examples", "image_png", "image_values"]

Kind = Literal["rescued", "harmed"]

_SMALLEST_SIDE: Final = 112  # pixels; smaller images are enlarged by a whole factor


@dataclass(frozen=True, slots=True)
class Answer:
    """One version's answer to an example.

    Attributes:
        version: its name.
        label: name of the class it answered.
        failure_probability: in [0, 1].
        right: whether it is the truth.
        followed: whether the guard gave it weight.
    """

    version: str
    label: str
    failure_probability: float
    right: bool
    followed: bool


@dataclass(frozen=True, slots=True)
class Example:
    """One input on which exactly one of guard and majority vote is right.

    Attributes:
        position: of the input in the evaluation.
        truth: name of its class.
        guard: name of the guard's answer.
        failure_probability: of the guard's answer, in [0, 1].
        abstained: whether the guard declined to answer for it.
        majority: name of the vote's answer.
        answers: of the N versions.
        image: as PNG.
        enlarged: whether the image was too small to be shown as it is.
    """

    position: int
    truth: str
    guard: str
    failure_probability: float
    abstained: bool
    majority: str
    answers: tuple[Answer, ...]
    image: bytes
    enlarged: bool


def find_examples(evaluation: Evaluation, kind: Kind, most: int) -> list[Example]:
    """Rescued inputs (guard right, vote wrong) or harmed ones (the reverse), those first of which the guard is surest.

    Args:
        evaluation: what to search.
        kind: which of the two.
        most: how many examples to return at most.
    """
    truth, decision = evaluation.truth, evaluation.decision
    majority = majority_of(evaluation).labels
    guard_right, majority_right = decision.labels == truth, majority == truth
    chosen = guard_right & ~majority_right if kind == "rescued" else majority_right & ~guard_right
    positions = chosen.nonzero()[:, 0]
    order = decision.failure_probability[positions].argsort(stable=True)
    return [_example(evaluation, majority, position) for position in positions[order][:most].tolist()]


def image_png(image: Tensor, bounds: Bounds) -> bytes:
    """One image (C, H, W) inside the bounds as PNG, small ones enlarged without smoothing."""
    pixels = image_values(image, bounds)
    factor = max(1, -(-_SMALLEST_SIDE // min(pixels.shape[:2])))
    buffer = io.BytesIO()
    large = pixels.repeat(factor, axis=0).repeat(factor, axis=1)
    imsave(buffer, large, format="png", origin="upper")
    return buffer.getvalue()


def image_values(image: Tensor, bounds: Bounds) -> NDArray[np.uint8]:
    """Red, green and blue (H, W, 3) of an image (C, H, W): three channels are colours, any other number is averaged.

    >>> image_values(torch.tensor([[[0.0, 1.0]]]), Bounds(0.0, 1.0)).tolist()
    [[[0, 0, 0], [255, 255, 255]]]
    """
    scaled = ((image.detach().cpu().double() - bounds.low) / bounds.width).nan_to_num(0.0).clamp(0, 1)
    colors = scaled if len(scaled) == 3 else scaled.mean(0, keepdim=True).expand(3, -1, -1)
    return (colors * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def _example(evaluation: Evaluation, majority: Tensor, position: int) -> Example:
    decision = evaluation.decision
    return Example(
        position=position,
        truth=_class_name(evaluation, evaluation.truth[position]),
        guard=_class_name(evaluation, decision.labels[position]),
        failure_probability=float(decision.failure_probability[position]),
        abstained=bool(decision.abstained[position]),
        majority=_class_name(evaluation, majority[position]),
        answers=tuple(_answer(evaluation, position, column) for column in range(len(evaluation.names))),
        image=image_png(evaluation.images[position], evaluation.bounds),
        enlarged=min(evaluation.images.shape[2:]) < _SMALLEST_SIDE,
    )


def _answer(evaluation: Evaluation, position: int, column: int) -> Answer:
    label = evaluation.evidence.labels[position, column]
    return Answer(
        version=evaluation.names[column],
        label=_class_name(evaluation, label),
        failure_probability=float(evaluation.failure_probability[position, column]),
        right=bool(label == evaluation.truth[position]),
        followed=bool(evaluation.decision.weights[position, column] > 0),
    )


def _class_name(evaluation: Evaluation, label: Tensor) -> str:
    return "no answer" if int(label) == NO_ANSWER else evaluation.classes[int(label)]
