"""What goes between a runtime and a version's process: JSON and the raw bytes of tensors, no pickle.

A process that broke may write anything. What comes from it is checked here: it may be wrong, but not harmful.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Final, get_args

import torch
from torch import Tensor

from deepfailguard.errors import WrongOutputError
from deepfailguard.guard.asking import Answers
from deepfailguard.guard.verdict import FaultKind, VersionHealth
from deepfailguard.runtime.base import Question
from deepfailguard.types import NO_ANSWER, Distances

__all__ = ["Message", "answers_message", "answers_of", "question_message", "question_of", "receive", "send"]

_LONGEST_HEADER: Final = 1 << 20
_LONGEST_PROBLEM: Final = 10_000  # characters
_LARGEST: Final = 1 << 33  # bytes of a tensor: more is no answer but rubbish
_DTYPES: Final = {str(t).removeprefix("torch."): t for t in (torch.float32, torch.float64, torch.int64, torch.bool)}
_OPTIONAL: Final = "stability"


@dataclass(frozen=True, slots=True)
class Message:
    """Something that is told.

    Attributes:
        kind: of message.
        facts: JSON.
        tensors: on any device; float32, float64, int64 or bool.
    """

    kind: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Layout:
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def send(line: Connection, message: Message) -> None:
    """Tell it; blocks until it is taken, but for what the pipe holds.

    Raises:
        OSError: nobody is there any more.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in message.tensors.items()}
    layouts = [[name, str(each.dtype).removeprefix("torch."), list(each.shape)] for name, each in tensors.items()]
    header = {"kind": message.kind, "facts": dict(message.facts), "tensors": layouts}
    line.send_bytes(json.dumps(header).encode())
    for tensor in tensors.values():
        if tensor.numel():
            line.send_bytes(tensor.flatten().view(torch.uint8).numpy().data)


def receive(line: Connection) -> Message:
    """Wait for a message.

    Raises:
        EOFError: nobody is there any more.
        OSError: it broke off.
        WrongOutputError: something else came; nobody knows where the next message starts.
    """
    kind, facts, layouts = _parsed(line.recv_bytes(_LONGEST_HEADER))
    return Message(kind, facts, {layout.name: _tensor(line, layout) for layout in layouts})


def _parsed(raw: bytes) -> tuple[str, dict[str, Any], list[_Layout]]:
    try:
        header = json.loads(raw)
        kind, facts = header["kind"], header["facts"]
        layouts = [_Layout(str(name), _DTYPES[dtype], tuple(map(int, s))) for name, dtype, s in header["tensors"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise WrongOutputError(f"expected a message, got {raw[:40]!r}: {type(error).__name__}: {error}") from error
    sound = all(min(each.shape, default=0) >= 0 and each.bytes <= _LARGEST for each in layouts)
    if not (isinstance(kind, str) and isinstance(facts, dict) and sound):
        raise WrongOutputError(f"expected a message, got one of another form: {raw[:200]!r}")
    return kind, facts, layouts


def _tensor(line: Connection, layout: _Layout) -> Tensor:
    if layout.bytes == 0:
        return torch.zeros(layout.shape, dtype=layout.dtype)
    raw = bytearray(line.recv_bytes(layout.bytes))
    if len(raw) != layout.bytes:
        raise WrongOutputError(f"expected {layout.bytes} bytes of {layout.name!r}, got {len(raw)}")
    if layout.dtype == torch.bool:  # of which torch takes bytes 0 and 1 only
        return torch.frombuffer(raw, dtype=torch.uint8).view(layout.shape) != 0
    return torch.frombuffer(raw, dtype=layout.dtype).view(layout.shape)


def question_message(question: Question) -> Message:
    """A question as it is sent."""
    facts = {"needs": sorted(question.needs), "measured": question.measured}
    return Message("question", facts, {"images": question.images.float()})


def question_of(message: Message) -> Question:
    """The question that was sent, its images on the CPU."""
    return Question(message.tensors["images"], frozenset(message.facts["needs"]), message.facts["measured"])


def answers_message(answers: Answers) -> Message:
    """Answers as they are sent."""
    health, distances = answers.health, answers.distances
    facts = {
        "answered": health.answered,
        "asked": health.asked,
        "problem": health.problem[:_LONGEST_PROBLEM],
        "fault": health.fault,
    }
    tensors = {
        "logits": answers.logits.double(),
        "features": answers.features.float(),
        "labels": distances.labels.long(),
        "size": distances.size.float(),
        "found": distances.found.bool(),
    }
    if answers.stability is not None:
        tensors[_OPTIONAL] = answers.stability.float()
    return Message("answers", facts, tensors)


def answers_of(message: Message, name: str, classes: int, asked: int) -> Answers:
    """The answers that were sent.

    Args:
        message: of the version's process.
        name: of the version.
        classes: K.
        asked: B, how many inputs it was asked.

    Raises:
        WrongOutputError: these are no answers to B inputs.
    """
    if message.kind != "answers":
        raise WrongOutputError(f"expected answers of version {name!r}, its process sent {message.kind!r}")
    _check_tensors(message.tensors, name, classes, asked)
    tensors, health = message.tensors, _health(message.facts, name)
    labels = tensors["labels"]
    sound = bool(torch.isfinite(tensors["logits"]).all()) and bool(((labels >= NO_ANSWER) & (labels < classes)).all())
    if not sound or health.asked != asked or health.answered != int((labels != NO_ANSWER).sum()):
        raise WrongOutputError(
            f"the process of version {name!r} sent answers that contradict one another: labels outside of "
            f"[-1, {classes}), logits that are not finite, or {health.answered} of {health.asked} answers for {asked} "
            "inputs"
        )
    distances = Distances(labels, tensors["size"], tensors["found"])
    return Answers(tensors["logits"], tensors["features"], distances, health, tensors.get(_OPTIONAL))


def _check_tensors(tensors: Mapping[str, Tensor], name: str, classes: int, asked: int) -> None:
    features = tensors["features"].shape[-1:] if "features" in tensors else ()
    expected = {
        "logits": (torch.float64, (asked, classes)),
        "features": (torch.float32, (asked, *features)),
        "labels": (torch.int64, (asked,)),
        "size": (torch.float32, (asked,)),
        "found": (torch.bool, (asked,)),
        _OPTIONAL: (torch.float32, (asked,)),
    }
    if tensors.keys() | {_OPTIONAL} != expected.keys():
        raise WrongOutputError(f"the process of version {name!r} sent {sorted(tensors)}, expected {sorted(expected)}")
    for key, tensor in tensors.items():
        dtype, shape = expected[key]
        if tensor.dtype != dtype or tensor.shape != shape:
            raise WrongOutputError(
                f"the process of version {name!r} sent {key} as {tensor.dtype} of shape {tuple(tensor.shape)}, "
                f"expected {dtype} of shape {tuple(shape)}"
            )


def _health(facts: Mapping[str, Any], name: str) -> VersionHealth:
    answered, asked, problem, fault = (facts.get(key) for key in ("answered", "asked", "problem", "fault"))
    known = fault is None or fault in get_args(FaultKind)
    if not (isinstance(answered, int) and isinstance(asked, int) and isinstance(problem, str) and known):
        raise WrongOutputError(f"the process of version {name!r} told something else than how it did: {dict(facts)}")
    return VersionHealth(name, answered, asked, problem, fault)
