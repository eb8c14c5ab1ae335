import json
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch

from deepfailguard.boundary.estimates.first_order import FirstOrderDistance
from deepfailguard.errors import WrongOutputError
from deepfailguard.guard.asking import Answers, ask, no_answers
from deepfailguard.runtime.base import Question
from deepfailguard.runtime.runners.wire import (
    Message,
    answers_message,
    answers_of,
    question_message,
    question_of,
    receive,
    send,
)
from deepfailguard.types import Bounds
from deepfailguard.versions.version import Version
from tests.examples import CLASSES, bars, template_model

IMAGES = bars(6, seed=8).images
VERSION = Version.of(template_model(0, 0.3), "one", CLASSES, Bounds())


@pytest.fixture
def line() -> Iterator[tuple[Connection, Connection]]:
    ours, theirs = Pipe()
    yield ours, theirs
    ours.close()
    theirs.close()


def answers(**changes: Any) -> Message:
    """A sound message with some parts exchanged."""
    message = answers_message(ask(VERSION, FirstOrderDistance(), IMAGES, frozenset({"stability"})))
    facts = {k: v for k, v in changes.items() if k in message.facts}
    tensors = {k: v for k, v in changes.items() if k not in message.facts}
    return replace(message, facts={**message.facts, **facts}, tensors={**message.tensors, **tensors})


@pytest.mark.parametrize("needs", [(), ("features",), ("stability", "features", "logits")], ids=str)
@pytest.mark.parametrize("batch", [0, 1, 6])
def test_answers_come_through_to_the_bit(
    line: tuple[Connection, Connection], batch: int, needs: tuple[Any, ...]
) -> None:
    told = ask(VERSION, FirstOrderDistance(), IMAGES[:batch], frozenset(needs))
    send(line[0], answers_message(told))
    came = answers_of(receive(line[1]), "one", CLASSES, batch)
    assert same(came, told)
    assert came.health == told.health
    assert came.logits.add_(1).shape == told.logits.shape  # one may write to them


def same(one: Answers, other: Answers) -> bool:
    def tensors(of: Answers) -> list[torch.Tensor | None]:
        return [of.logits, of.features, of.distances.labels, of.distances.size, of.distances.found, of.stability]

    return all(
        (a is None and b is None)
        or (a is not None and b is not None and a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b))
        for a, b in zip(tensors(one), tensors(other), strict=True)
    )


def test_a_failure_comes_through_with_its_kind(line: tuple[Connection, Connection]) -> None:
    told = no_answers("one", CLASSES, 6, "it broke: \ud800 " + "x" * 20_000, "exception")
    send(line[0], answers_message(told))
    came = answers_of(receive(line[1]), "one", CLASSES, 6)
    assert came.health.fault == "exception"
    assert told.health.problem.startswith(came.health.problem)
    assert 5_000 < len(came.health.problem) < 20_000


@pytest.mark.parametrize("measured", [True, False])
def test_questions_come_through(line: tuple[Connection, Connection], measured: bool) -> None:
    for images in (IMAGES, IMAGES[:0], IMAGES.transpose(2, 3)):
        question = Question(images, frozenset({"logits", "stability"}), measured)
        send(line[0], question_message(question))
        came = question_of(receive(line[1]))
        assert torch.equal(came.images, images)
        assert (came.needs, came.measured) == (question.needs, question.measured)


@pytest.mark.parametrize(
    "message",
    [
        Message("ready"),
        Message("answers", {}, answers().tensors),
        Message("answers", answers().facts, {}),
        answers(surplus=torch.zeros(1)),
        answers(logits=torch.zeros(6, CLASSES + 1, dtype=torch.float64)),
        answers(logits=torch.zeros(6, CLASSES)),
        answers(logits=torch.full((6, CLASSES), torch.nan, dtype=torch.float64)),
        answers(features=torch.zeros(5, 2)),
        answers(features=torch.zeros(6)),
        answers(labels=torch.full((6,), CLASSES)),
        answers(labels=torch.full((6,), -2)),
        answers(labels=torch.zeros(7, dtype=torch.int64)),
        answers(size=torch.zeros(6, dtype=torch.float64)),
        answers(found=torch.zeros(6)),
        answers(stability=torch.zeros(6, 1)),
        answers(answered=5),
        answers(asked=7),
        answers(answered="6"),
        answers(problem=None),
        answers(fault="bad mood"),
    ],
    ids=str,
)
def test_answers_that_are_none_are_refused(line: tuple[Connection, Connection], message: Message) -> None:
    send(line[0], message)
    with pytest.raises(WrongOutputError, match="version 'one'"):
        answers_of(receive(line[1]), "one", CLASSES, 6)


def header(**changes: Any) -> bytes:
    return json.dumps({"kind": "answers", "facts": {}, "tensors": []} | changes).encode()


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\xff\xfe\x00",
        b"null",
        b"[" * 100_000,
        b'{"kind": 3}',
        header(kind=3),
        header(facts=[]),
        header(tensors=[["size", "float16", [2]]]),
        header(tensors=[["size", "float32", [-2]]]),
        header(tensors=[["size", "float32", [2, "many"]]]),
        header(tensors=[["size", "float32", [1 << 40]]]),
        header(tensors="size"),
    ],
    ids=lambda garbage: repr(garbage[:50]),
)
def test_what_is_no_message_is_refused(line: tuple[Connection, Connection], garbage: bytes) -> None:
    line[0].send_bytes(garbage)
    with pytest.raises(WrongOutputError, match="expected a message, got"):
        receive(line[1])


def test_fewer_bytes_than_were_announced_are_refused(line: tuple[Connection, Connection]) -> None:
    line[0].send_bytes(header(tensors=[["size", "float32", [4]]]))
    line[0].send_bytes(b"x" * 15)
    with pytest.raises(WrongOutputError, match="expected 16 bytes of 'size', got 15"):
        receive(line[1])


@pytest.mark.parametrize(
    "write",
    [
        lambda line: line.send_bytes(b"x" * (1 << 20 | 1)),
        lambda line: line._write(line.fileno(), struct.pack("!i", 0x7FFFFFFF)),
        lambda line: (line.send_bytes(header(tensors=[["size", "float32", [4]]])), line.send_bytes(b"x" * 17)),
    ],
    ids=["long header", "endless header", "long tensor"],
)
def test_more_bytes_than_were_announced_break_the_line(
    line: tuple[Connection, Connection], write: Callable[[Any], object]
) -> None:
    def told() -> None:
        with suppress(OSError):  # the other side has hung up
            write(line[0])

    writer = threading.Thread(target=told)
    writer.start()
    with pytest.raises(OSError, match="bad message length"):
        receive(line[1])
    line[1].close()
    writer.join(30)
