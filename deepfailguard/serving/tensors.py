"""The guard's tensors in the Open Inference Protocol, whatever carries them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import orjson
from numpy.typing import NDArray

from deepfailguard.guard.saved import GuardCard
from deepfailguard.serving.answers import Answer
from deepfailguard.serving.refusing import RefusedError

__all__ = [
    "DATATYPES",
    "EXTENSIONS",
    "INPUT",
    "MODEL_VERSION",
    "OUTPUTS",
    "InferRequest",
    "check_outputs",
    "image_shape",
    "input_tensors",
    "number_type",
    "output_tensors",
    "reshaped",
    "response_parameters",
    "seconds_of",
]

INPUT: Final = "images"
MODEL_VERSION: Final = "1"
EXTENSIONS: Final = ("binary_tensor_data",)
DATATYPES: Final[dict[str, Any]] = {"FP16": np.float16, "FP32": np.float32, "FP64": np.float64}
"""Datatypes of images, with the numpy type of their bytes."""

OUTPUTS: Final = {
    "labels": "INT64",
    "abstained": "BOOL",
    "failure_probability": "FP64",
    "probabilities": "FP64",
    "version_labels": "INT64",
    "version_failure_probability": "FP64",
    "weights": "FP64",
    "distance": "FP32",
}
"""Datatypes of the outputs, in their order."""


@dataclass(frozen=True, slots=True, eq=False)
class InferRequest:
    """A request for answers.

    Attributes:
        images: (B, C, H, W) float16, float32 or float64.
        identity: what the client calls the request; empty for nothing.
        outputs: names of the wanted outputs, and whether each is wanted as bytes (where the carrier has a choice).
        seconds: what the client waits at most; None for as long as the server lets it.
    """

    images: NDArray[Any]
    identity: str
    outputs: dict[str, bool]
    seconds: float | None


def input_tensors(card: GuardCard) -> list[dict[str, Any]]:
    """The input as a model's metadata tell it."""
    return [{"name": INPUT, "datatype": "FP32", "shape": [-1, *card.input_shape]}]


def output_tensors(card: GuardCard) -> list[dict[str, Any]]:
    """The outputs as a model's metadata tell them."""
    classes, versions = len(card.classes), len(card.names)
    widths = {"labels": [], "abstained": [], "failure_probability": [], "probabilities": [classes]}
    return [
        {"name": name, "datatype": datatype, "shape": [-1, *widths.get(name, [versions])]}
        for name, datatype in OUTPUTS.items()
    ]


def number_type(datatype: object) -> Any:
    """The numpy type of a datatype that images may have."""
    if datatype in DATATYPES:
        return DATATYPES[str(datatype)]
    whole = isinstance(datatype, str) and datatype.startswith(("INT", "UINT"))
    hint = "divide whole numbers into the guard's range, and send FP32" if whole else "send FP32"
    raise RefusedError(400, f"expected images of {', '.join(DATATYPES)}, got {_short(datatype)}; {hint}")


def image_shape(name: object, shape: object, card: GuardCard) -> tuple[int, ...]:
    """The shape (B, C, H, W) that an input says that it has, B >= 1.

    Raises:
        RefusedError: it is another input, or has another shape.
    """
    if name != INPUT:
        raise RefusedError(400, f"expected an input named {INPUT!r}, got {_short(name)}")
    expected = [-1, *card.input_shape]
    if not isinstance(shape, Sequence) or not all(type(each) is int for each in shape):
        raise RefusedError(400, f"expected the shape {expected} as a list of whole numbers, got {_short(shape)}")
    if len(shape) != 4 or tuple(shape[1:]) != card.input_shape or not 1 <= shape[0] < 1 << 31:
        hint = "; put a 1 before it for one image" if tuple(shape) == card.input_shape else ""
        raise RefusedError(
            400, f"expected images of shape {expected}, -1 for one or more images, got {_short(list(shape))}{hint}"
        )
    return tuple(shape)


def reshaped(values: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """The values in the shape that they are said to have."""
    count = math.prod(shape)
    if values.size != count:
        raise RefusedError(400, f"expected {count} numbers for the shape {list(shape)}, got {values.size}")
    return values.reshape(shape)


def check_outputs(names: Sequence[object]) -> None:
    """Refuse outputs that there are not, and ones that are named twice."""
    for name in names:
        if name not in OUTPUTS:
            raise RefusedError(400, f"there is no output {_short(name)}; there are {', '.join(OUTPUTS)}")
    if len(set(names)) < len(names):
        raise RefusedError(400, f"expected each output once, got {_short(names)}")


def seconds_of(parameters: Mapping[str, Any]) -> float | None:
    """What a client waits at most: the parameter `timeout`, in microseconds; 0 is for no limit of its own.

    Raises:
        RefusedError: it is no whole number, or a parameter wants what there is not.
    """
    if parameters.get("sequence_id"):
        raise RefusedError(400, "each request stands for itself, there are no sequences; leave out sequence_id")
    timeout = parameters.get("timeout", 0)
    if type(timeout) is not int or timeout < 0:
        raise RefusedError(400, f"expected timeout in microseconds, a whole number >= 0, got {_short(timeout)}")
    return timeout / 1e6 if timeout else None


def response_parameters(answer: Answer) -> dict[str, bool | str]:
    """What is told of an answer beside its tensors."""
    problems = {str(position): text for position, text in answer.problems.items()}
    return {
        "degraded": answer.degraded,
        "ground": answer.ground,
        "versions": ",".join(answer.versions),
        "problems": orjson.dumps(problems).decode() if problems else "{}",
    }


def _short(value: object, most: int = 80) -> str:
    """A value for an error's text, and not more of it than a person reads."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."
