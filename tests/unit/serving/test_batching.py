"""Requests share batches, and nothing of one reaches another."""

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from deepfailguard.errors import GuardLostError
from deepfailguard.serving.answers import Answer, Batch
from deepfailguard.serving.batching import Batcher
from deepfailguard.serving.refusing import RefusedError
from deepfailguard.serving.settings import ServerSettings
from tests.serving_examples import GuardDouble, images_of

LONG = ServerSettings(max_batch=8, max_wait=30.0, queue=32, deadline=60.0, per_client=100)
AT_ONCE = dataclasses.replace(LONG, max_wait=0.0)


class Seen:
    """An observer."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, batch: Batch, seconds: float) -> None:
        assert seconds > 0
        self.batches.append(len(batch.verdict))


def run(
    work: Callable[[Batcher], Awaitable[Any]], double: GuardDouble, settings: ServerSettings = AT_ONCE, **seen: Any
) -> Any:
    async def whole() -> Any:
        batcher = Batcher(double, settings, seen.get("observe", Seen()))
        try:
            async with asyncio.timeout(60):
                return await work(batcher)
        finally:
            double.gate.set()
            batcher.close()

    return asyncio.run(whole())


def ask(batcher: Batcher, images: Tensor, client: str = "somebody", **more: Any) -> "asyncio.Task[Answer]":
    return asyncio.create_task(batcher.infer(images.numpy(), client, **more))


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


async def hold(batcher: Batcher, double: GuardDouble) -> "asyncio.Task[Answer]":
    """Keep the guard busy with a first request."""
    double.gate.clear()
    first = ask(batcher, images_of(1))
    await until(double.started.is_set)
    return first


def test_a_full_batch_goes_at_once() -> None:
    double = GuardDouble()

    async def work(batcher: Batcher) -> list[Answer]:
        return await asyncio.gather(*(ask(batcher, images_of(2, seed=i)) for i in range(4)))

    run(work, double, LONG)  # nobody would wait for 30 s
    assert double.batches == [8]


def test_a_first_request_waits_for_others_only_so_long() -> None:
    double = GuardDouble()
    settings = dataclasses.replace(LONG, max_wait=0.01)
    run(lambda batcher: ask(batcher, images_of(2)), double, settings)
    assert double.batches == [2]


def test_what_came_while_the_guard_was_busy_goes_as_soon_as_it_is_done() -> None:
    double = GuardDouble()

    async def work(batcher: Batcher) -> None:
        first = [ask(batcher, images_of(4, seed=i)) for i in range(2)]  # a full batch, as max_wait is 30 s
        double.gate.clear()
        await until(double.started.is_set)
        others = [ask(batcher, images_of(1, seed=i)) for i in range(3)]
        await until(lambda: batcher.images_waiting == 3)
        double.gate.set()
        await asyncio.gather(*first, *others)

    run(work, double, LONG)
    assert double.batches == [8, 3]


def test_a_full_batch_is_made_ready_while_the_guard_is_busy() -> None:
    double = GuardDouble()

    async def work(batcher: Batcher) -> list[Answer]:
        double.gate.clear()
        asked = [ask(batcher, images_of(4, seed=i)) for i in range(8)]
        await until(double.started.is_set)
        await until(lambda: batcher.images_waiting == 16)  # one batch is computed, one is ready
        double.gate.set()
        return await asyncio.gather(*asked)

    answers = run(work, double, LONG)
    assert double.batches == [8, 8, 8, 8]
    assert double.crowd == 1  # the guard's own deadline must not pass while it answers the batch before
    for seed, answer in enumerate(answers):
        assert answer.outputs["labels"].tolist() == double.guard(images_of(4, seed=seed)).labels.tolist()


def test_who_asks_while_the_guard_is_lost_is_told_when_to_come_again() -> None:
    double = GuardDouble()

    def die(_: Tensor) -> None:
        raise GuardLostError("the guard's process ended")

    double.poison = die

    async def work(batcher: Batcher) -> list[Any]:
        return await asyncio.gather(*(ask(batcher, images_of(1)) for _ in range(3)), return_exceptions=True)

    refused = run(work, double)
    assert [(error.status, error.retry_after) for error in refused] == [(503, 5)] * 3
    assert len(double.batches) == 1  # what took it down is not asked again at once


def test_each_request_gets_exactly_its_rows() -> None:
    double = GuardDouble()
    parts = [images_of(count, seed=count) for count in (1, 3, 2, 2)]

    async def work(batcher: Batcher) -> list[Answer]:
        return await asyncio.gather(*(ask(batcher, part) for part in parts))

    answers = run(work, double, LONG)
    assert double.batches == [8]
    whole = double.guard(torch.cat(parts))
    start = 0
    for part, answer in zip(parts, answers, strict=True):
        rows = slice(start, start + len(part))
        for name in ("labels", "abstained", "failure_probability", "probabilities", "version_labels", "weights"):
            assert np.array_equal(answer.outputs[name], getattr(whole, name)[rows].numpy()), name
        assert answer.versions == double.card.names
        start += len(part)


def test_a_long_request_is_split_and_put_together() -> None:
    double, images = GuardDouble(), images_of(21)
    answer = run(lambda batcher: ask(batcher, images), double, LONG)
    assert max(double.batches) <= 8
    assert sum(double.batches) == 21
    assert answer.outputs["labels"].tolist() == double.guard(images).labels.tolist()


def test_positions_of_bad_images_are_those_in_the_request() -> None:
    double, images = GuardDouble(), images_of(21)
    images[0], images[17, 0, 3, 3] = 2.0, float("nan")

    async def work(batcher: Batcher) -> list[Answer]:
        return await asyncio.gather(ask(batcher, images), ask(batcher, images_of(3)))

    bad, good = run(work, double, LONG)
    assert set(bad.problems) == {0, 17}
    assert (bad.outputs["labels"] == -1).tolist() == [position in {0, 17} for position in range(21)]
    assert good.problems == {}
    assert not good.outputs["abstained"].any()


def test_parts_from_before_and_after_a_change_have_one_set_of_columns() -> None:
    double = GuardDouble()

    def fail_one(images: Tensor) -> None:
        if len(double.batches) == 2:
            double.set_aside("odd", "a test")

    double.poison = fail_one
    answer = run(lambda batcher: ask(batcher, images_of(12)), double, LONG)
    assert answer.degraded
    assert answer.ground == "versions left"
    assert answer.outputs["weights"].shape == (12, 3)


def test_one_poisonous_request_fails_alone(caplog: pytest.LogCaptureFixture) -> None:
    double, poison = GuardDouble(), images_of(2, seed=3)

    def break_on_it(images: Tensor) -> None:
        if any(torch.equal(image, poison[0]) for image in images):
            raise RuntimeError("the guard itself broke")

    double.poison = break_on_it
    mates = [images_of(2, seed=seed) for seed in (10, 11, 12)]

    async def work(batcher: Batcher) -> list[Any]:
        tasks = [ask(batcher, each) for each in (mates[0], poison, *mates[1:])]
        return await asyncio.gather(*tasks, return_exceptions=True)

    first, refusal, *others = run(work, double, LONG)
    for mate, answer in zip(mates, [first, *others], strict=True):
        assert answer.outputs["labels"].tolist() == double.guard(mate).labels.tolist()
    assert isinstance(refusal, RefusedError)
    assert refusal.status == 500
    number = refusal.text.rpartition(" ")[2]
    assert any(number in record.getMessage() and record.exc_info for record in caplog.records)
    assert double.batches == [8, 2, 2, 2, 2]  # once together, then each alone once


def test_a_guard_that_gives_too_few_answers_is_not_believed() -> None:
    class Short(GuardDouble):
        def __call__(self, images: Tensor, deadline: float | None = None) -> Any:
            return super().__call__(images[:1], deadline)

    with pytest.raises(RefusedError, match="the guard failed"):
        run(lambda batcher: ask(batcher, images_of(2)), Short())


def test_a_full_queue_refuses_and_says_when_to_come_again() -> None:
    double = GuardDouble()

    async def work(batcher: Batcher) -> None:
        first = await hold(batcher, double)
        waiting = [ask(batcher, images_of(8, seed=i)) for i in range(5)]  # the first of them is made ready
        await until(lambda: batcher.images_waiting == 32)
        with pytest.raises(RefusedError, match="32 images wait") as refused:
            await batcher.infer(images_of(1).numpy(), "another")
        assert refused.value.status == 503
        assert refused.value.retry_after is not None
        assert 1 <= refused.value.retry_after <= 60
        double.gate.set()
        await asyncio.gather(first, *waiting)
        await batcher.infer(images_of(1).numpy(), "another")  # there is room again

    run(work, double)


def test_a_request_that_can_never_fit_is_told_so() -> None:
    with pytest.raises(RefusedError, match="at most 32 images") as refused:
        run(lambda batcher: ask(batcher, images_of(33)), GuardDouble())
    assert refused.value.status == 413


def test_one_client_cannot_take_every_place() -> None:
    double, settings = GuardDouble(), dataclasses.replace(AT_ONCE, per_client=2)

    async def work(batcher: Batcher) -> None:
        tasks = [await hold(batcher, double), ask(batcher, images_of(1))]
        await until(lambda: batcher.images_waiting == 1)
        with pytest.raises(RefusedError, match="already waits for 2 answers") as refused:
            await batcher.infer(images_of(1).numpy(), "somebody")
        assert refused.value.status == 429
        assert refused.value.retry_after == 1
        tasks.append(ask(batcher, images_of(1), "another"))
        await asyncio.sleep(0)
        double.gate.set()
        await asyncio.gather(*tasks)
        await batcher.infer(images_of(1).numpy(), "somebody")

    run(work, double, settings)


def test_retry_after_follows_the_measured_speed() -> None:
    double = GuardDouble()

    async def work(batcher: Batcher) -> tuple[int, int]:
        await ask(batcher, images_of(8))
        batcher._speed = 4.0  # images per second
        first = await hold(batcher, double)
        waiting = ask(batcher, images_of(8))
        await until(lambda: batcher.images_waiting == 8)
        told = batcher.retry_after()
        double.gate.set()
        await asyncio.gather(first, waiting)
        return told, batcher.retry_after()

    assert run(work, double) == (2, 1)


def test_a_request_whose_time_is_over_is_refused_and_never_computed() -> None:
    double = GuardDouble()

    async def work(batcher: Batcher) -> None:
        first = await hold(batcher, double)
        began = time.monotonic()
        with pytest.raises(RefusedError, match=r"within the deadline of 0\.05 s") as refused:
            await batcher.infer(images_of(3).numpy(), "hasty", 0.05)
        assert refused.value.status == 504
        assert time.monotonic() - began >= 0.05
        double.gate.set()
        await first
        await ask(batcher, images_of(2))

    run(work, double)
    assert double.batches == [1, 2]


def test_a_request_whose_client_went_away_is_never_computed() -> None:
    double = GuardDouble()

    async def work(batcher: Batcher) -> None:
        first = await hold(batcher, double)
        gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        leaving = ask(batcher, images_of(3), gone=gone)
        await until(lambda: batcher.images_waiting == 3)
        gone.set_result(None)
        with pytest.raises(RefusedError, match="went away"):
            await leaving
        assert batcher.images_waiting == 0
        double.gate.set()
        await first
        assert batcher.requests == 0

    run(work, double)
    assert double.batches == [1]


def test_a_cancelled_request_leaves_nothing_behind() -> None:
    double = GuardDouble()

    async def work(batcher: Batcher) -> None:
        first = await hold(batcher, double)
        leaving = ask(batcher, images_of(20))
        await until(lambda: batcher.images_waiting == 12)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert batcher.images_waiting == 0
        double.gate.set()
        await first

    run(work, double)
    assert double.batches in ([1], [1, 8])  # of what was ready already; no more


def test_what_would_be_too_late_is_not_computed() -> None:
    double = GuardDouble()

    async def work(batcher: Batcher) -> None:
        double.poison = lambda _: time.sleep(1.0)
        await batcher.infer(images_of(1).numpy(), "somebody")  # now it is known what a batch takes
        double.poison = None
        double.started.clear()
        first = await hold(batcher, double)
        late = ask(batcher, images_of(2), seconds=0.5)
        later = ask(batcher, images_of(3), seconds=30.0)
        await until(lambda: batcher.images_waiting == 5)
        double.gate.set()
        with pytest.raises(RefusedError, match="within the deadline"):
            await late
        await asyncio.gather(first, later)

    run(work, double)
    assert double.batches == [1, 1, 3]


def test_a_loop_that_ends_leaves_the_next_one_nothing_to_wait_for() -> None:
    double = GuardDouble()
    batcher = Batcher(double, dataclasses.replace(LONG, max_batch=4), Seen())

    async def leave() -> None:
        double.gate.clear()
        double.started.clear()
        left = ask(batcher, images_of(4))
        await until(double.started.is_set)
        ask(batcher, images_of(1))
        await asyncio.sleep(0)
        left.cancel()

    asyncio.run(leave())
    double.gate.set()
    assert wait_for(lambda: not batcher._running)
    answer = asyncio.run(batcher.infer(images_of(4).numpy(), "somebody"))
    batcher.close()
    assert len(answer.outputs["labels"]) == 4


def wait_for(condition: Callable[[], object]) -> bool:
    end = time.monotonic() + 60
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return bool(condition())


def test_a_hasty_client_does_not_hurry_the_others() -> None:
    """Its own time is not the guard's: versions would be left out of the others' answers."""
    double = GuardDouble()

    async def work(batcher: Batcher) -> None:
        await asyncio.gather(ask(batcher, images_of(4)), ask(batcher, images_of(4), "hasty", seconds=5.0))

    run(work, double, LONG)
    assert double.batches == [8]
    assert double.deadlines == [None]  # the guard's own


def test_doubles_become_floats_and_what_is_too_large_becomes_a_bad_image() -> None:
    double = GuardDouble()
    images = images_of(2).double().numpy()
    images[1, 0, 0, 0] = 1e300
    answer = run(lambda batcher: asyncio.create_task(batcher.infer(images, "somebody")), double)
    assert set(answer.problems) == {1}


def test_the_observer_sees_every_batch_and_cannot_spoil_one(caplog: pytest.LogCaptureFixture) -> None:
    seen = Seen()
    run(lambda batcher: ask(batcher, images_of(5)), GuardDouble(), observe=seen)
    assert seen.batches == [5]

    def broken(_: Batch, __: float) -> None:
        raise ZeroDivisionError

    answer = run(lambda batcher: ask(batcher, images_of(5)), GuardDouble(), observe=broken)
    assert len(answer.outputs["labels"]) == 5
    assert "could not be counted" in caplog.text
