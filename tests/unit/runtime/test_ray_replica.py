"""A replica looks after itself: here without Ray, which only starts and calls it."""

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from deepfailguard.errors import CorruptFileError, WrongOutputError
from deepfailguard.guard.asking import ask
from deepfailguard.runtime.runners import ray_replica
from deepfailguard.runtime.runners.ray_replica import Briefing, ReplicaSettings, VersionReplica, heard
from deepfailguard.types import Bounds
from deepfailguard.versions.version import Version
from tests.examples import CLASSES, bars, template_model

IMAGES = bars(6, seed=3).images
SETTINGS = ReplicaSettings(hang_seconds=0.2, check_every=0.05, upkeep_share=1.0)


class Left(BaseException):
    """In place of the end of the process."""


class Hanging(nn.Module):
    """Hangs while it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.model = template_model()
        self.free = threading.Event()
        self.free.set()

    def forward(self, x: Tensor) -> Tensor:
        assert self.free.wait(60)
        logits: Tensor = self.model(x)
        return logits


class Memory:
    """Gives models of its own making, and keeps the last one within reach of the test."""

    def __init__(self) -> None:
        self.loads = 0
        self.error: Exception | None = None

    def load(self) -> Version:
        if self.error is not None:
            raise self.error
        self.loads += 1
        self.model = Hanging()
        return Version.of(self.model, "one", CLASSES, Bounds())


@pytest.fixture
def source() -> Memory:
    return Memory()


@pytest.fixture
def reasons(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Why it ended itself."""
    told: list[str] = []

    def leave(_: object, reason: str) -> None:
        told.append(reason)
        raise Left

    monkeypatch.setattr(VersionReplica, "_leave", leave)
    return told


def replica_of(source: Memory, expected: Tensor | None = None, settings: ReplicaSettings = SETTINGS) -> VersionReplica:
    return VersionReplica(Briefing("one", source, None, IMAGES, expected), settings)


def told(replica: VersionReplica) -> Tensor:
    return heard(asyncio.run(question(replica)), "one", CLASSES, len(IMAGES)).logits


def question(replica: VersionReplica) -> Awaitable[ray_replica.PlainAnswers]:
    return replica.ask(IMAGES.numpy(), frozenset(), True)


def truth() -> Tensor:
    return ask(Version.of(template_model(), "one", CLASSES), None, IMAGES).logits


def change(source: Memory) -> None:
    with torch.no_grad():
        source.model.model.weight[0, 0] += 1e-4


def test_a_sound_replica_answers_and_stays(source: Memory, reasons: list[str]) -> None:
    replica = replica_of(source)
    assert torch.equal(told(replica), truth())
    asyncio.run(replica.check_health())
    assert asyncio.run(replica.check_weights(0.01)) == ()
    assert (source.loads, reasons) == (1, [])


def test_it_leaves_when_its_weights_change(source: Memory, reasons: list[str]) -> None:
    replica = replica_of(source)
    change(source)
    assert asyncio.run(replica.check_weights(0.01)) == ("model.weight",)
    with pytest.raises(Left):
        asyncio.run(replica.check_health())
    assert reasons == ["its weights changed: model.weight"]


def test_it_leaves_when_it_fails_its_canary(source: Memory, reasons: list[str]) -> None:
    replica = replica_of(source)
    source.model.model.forward = lambda x: torch.full((len(x), CLASSES), torch.nan)  # what no checksum sees
    with pytest.raises(Left):
        asyncio.run(replica.check_health())
    assert reasons[0].startswith("fails its canary inputs: logits of 6 of 6 inputs are NaN")


@pytest.mark.parametrize("call", [question, VersionReplica.check_health])
def test_it_leaves_when_the_model_hangs(
    source: Memory, reasons: list[str], call: Callable[[VersionReplica], Awaitable[object]]
) -> None:
    replica = replica_of(source)
    source.model.free.clear()

    async def asked() -> None:
        try:
            await call(replica)
        finally:
            source.model.free.set()  # or the thread would outlive the test

    with pytest.raises(Left):
        asyncio.run(asked())
    assert reasons == ["the model was busy for longer than 0.2 s"]


def test_ray_is_not_kept_waiting_for_a_busy_model(source: Memory, reasons: list[str]) -> None:
    patient = ReplicaSettings(hang_seconds=60, check_every=0.05)
    replica = replica_of(source, settings=patient)

    async def busy() -> Tensor:
        source.model.free.clear()
        answers = asyncio.ensure_future(question(replica))
        await asyncio.sleep(0)
        await replica.check_health()
        assert not answers.done()
        source.model.free.set()
        return heard(await answers, "one", CLASSES, len(IMAGES)).logits

    assert torch.equal(asyncio.run(busy()), truth())
    assert reasons == []


def test_it_loads_fresh_weights_before_the_next_answer(source: Memory, reasons: list[str]) -> None:
    replica = replica_of(source)
    change(source)
    asyncio.run(replica.renew())
    assert source.loads == 1
    assert torch.equal(told(replica), truth())
    asyncio.run(replica.ready())
    assert (source.loads, reasons) == (2, [])


def test_it_leaves_when_fresh_weights_cannot_be_loaded(source: Memory, reasons: list[str]) -> None:
    replica = replica_of(source)
    source.error = CorruptFileError("the file is not what it was")
    asyncio.run(replica.renew())
    with pytest.raises(Left):
        asyncio.run(replica.ready())
    assert reasons == ["fresh weights could not be loaded: CorruptFileError: the file is not what it was"]


def test_it_does_not_start_with_another_model_than_was_calibrated(source: Memory, reasons: list[str]) -> None:
    assert torch.equal(told(replica_of(source, truth().float())), truth())
    with pytest.raises(WrongOutputError, match=r"version 'one' fails its canary inputs.*was its code changed"):
        replica_of(source, truth().float().flip(1))
    assert reasons == []


def test_its_end_is_told_in_the_log(source: Memory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ended: list[int] = []

    def end(code: int) -> None:
        ended.append(code)
        raise Left

    said: list[str] = []
    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(ray_replica.logging, "shutdown", lambda: None)
    monkeypatch.setattr(ray_replica.logger, "error", lambda text, *values: said.append(text % values))
    replica = replica_of(source)
    change(source)
    with pytest.raises(Left):
        asyncio.run(replica.check_health())
    assert ended == [70]
    assert said == ["a replica of version 'one' ends itself: its weights changed: model.weight; Ray starts another"]


def test_images_from_the_object_store_may_not_be_written_to(source: Memory) -> None:
    replica = replica_of(source)
    images = IMAGES.numpy().copy()
    images.flags.writeable = False
    sent = asyncio.run(replica.ask(images, frozenset(), False))
    for array in sent[1].values():
        array.flags.writeable = False
    assert torch.equal(heard(sent, "one", CLASSES, len(IMAGES)).logits, truth())
