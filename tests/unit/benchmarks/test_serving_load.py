"""The load benchmarks: a client that misses nothing, requests that are what they say, and checks that can fail."""

import asyncio
import contextlib
import dataclasses
import doctest
import json
import random
import shutil
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from benchmarks import serving as benchmark
from benchmarks.reporting import as_json as results_json
from benchmarks.serving_load import figures, latency, machine, memory, overhead, pressing, server, swapping, throughput
from benchmarks.serving_load.answers import Answer, Expected, answer_of
from benchmarks.serving_load.clients import Client, press
from benchmarks.serving_load.connections import Connection, Connections, Reply, new_loop
from benchmarks.serving_load.latency import Latency, Wave
from benchmarks.serving_load.memory import Sample, growth_of
from benchmarks.serving_load.mischief import malformed, spoilt
from benchmarks.serving_load.overhead import LOOP, measure_overhead, place_lines, time_ways
from benchmarks.serving_load.pressing import Order, Pressed, Presser, due_times
from benchmarks.serving_load.requests import ANSWERS, as_binary, as_json, write_requests
from benchmarks.serving_load.server import ADMIN_KEY, Server, metric
from benchmarks.serving_load.soaking import Soak, Soaker, server_errors, soak_lines
from benchmarks.serving_load.subjects import Subject, fresh_state
from benchmarks.serving_load.swapping import Period, Swapping, Told, sort_out, swap_under_load
from benchmarks.serving_load.throughput import Burst, Throughput
from deepfailguard.evaluation.swap_gate import SwapGate
from deepfailguard.serving.settings import ServerSettings
from deepfailguard.serving.tensor_bodies import decode_request
from tests.serving_examples import GuardDouble, images_of, serving, small_guard

IMAGES = images_of(40).numpy()
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
SETTINGS = ServerSettings(deadline=30.0, admin_key=ADMIN_KEY)


class Attached(Server):
    """A server that runs in this process already."""

    def __init__(self, port: int) -> None:
        super().__init__(Path(), Path(), Path())
        self.port = port

    def memory(self) -> int:
        return int(psutil.Process().memory_info().rss)


class Operated(GuardDouble):
    """Changes between two batches, never within one, as a runtime does."""

    def set_aside(self, name: str, reason: str) -> None:
        with self._lock:
            super().set_aside(name, reason)

    def release(self, name: str) -> None:
        with self._lock:
            super().release(name)

    def swap(self, leaving: str, entering: str, force: bool = False) -> SwapGate:
        with self._lock:
            return super().swap(leaving, entering, force)


@contextmanager
def attached(double: GuardDouble) -> Iterator[Attached]:
    with serving(double, SETTINGS) as running:
        yield Attached(running.port)


def subject() -> Subject:
    return Subject("bars", small_guard(), None, torch.from_numpy(IMAGES))


@asynccontextmanager
async def answering(
    handle: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[int]:
    """The port of a server that is gone, with all of its connections, when this ends."""
    ended: list[asyncio.Task[None]] = []

    async def until_it_goes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ended.append(asyncio.current_task())  # type: ignore[arg-type]
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await handle(reader, writer)
            await reader.read()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    running = await asyncio.start_server(until_it_goes, "127.0.0.1", 0)
    yield int(running.sockets[0].getsockname()[1])
    running.close()
    await asyncio.gather(*ended)


async def read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    return head + await reader.readexactly(length)


def test_answers_are_put_together_from_parts() -> None:
    async def run() -> list[Reply]:
        connection, told = Connection(), []
        sent: list[bytes] = []

        class Transport:
            def write(self, data: bytes) -> None:
                sent.append(data)

            def is_closing(self) -> bool:
                return False

        connection.connection_made(Transport())  # type: ignore[arg-type]
        head = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\nInference-Header-Content-Length: 2\r\n\r\n"
        for parts in ([head[:10], head[10:] + b"{}ab", b"cd"], [b"HTTP/1.1 404 N\r\nConnection: close\r\n\r\n"]):
            answer = asyncio.ensure_future(connection.ask(b"ask"))
            await asyncio.sleep(0)
            for part in parts:
                assert not answer.done()
                connection.data_received(part)
            told.append(await answer)
        assert sent == [b"ask", b"ask"]
        assert not connection.open  # the server said that it closes it
        return told

    first, second = asyncio.run(run())
    assert first == Reply(200, b"{}abcd", 2)
    assert second == Reply(404, b"", None, closes=True)


def test_a_connection_that_is_lost_is_told_and_not_used_again() -> None:
    async def run() -> None:
        async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            writer.close()

        async with answering(once) as port, Connections(port) as connections:
            first = await connections.take()
            with pytest.raises(ConnectionError, match="before the answer"):
                await first.ask(as_binary(IMAGES[:1]))
            connections.give(first)
            second = await connections.take()
            assert second is not first
            connections.give(second)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(run())


def test_clients_wait_for_each_answer_and_count_what_fails() -> None:
    async def run() -> Pressed:
        statuses = iter([b"200", b"503"] * 1000)

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while await read_request(reader):
                writer.write(OK.replace(b"200", next(statuses)))
                await asyncio.sleep(0.01)

        async with answering(serve) as port:
            order = Order(port, (), 0.2, clients=2)
            return await Presser(order, [as_binary(IMAGES[:1])]).press()

    pressed = asyncio.run(run())
    assert pressed.requests > 0
    assert list(pressed.failures) == ["503: hi"]
    assert pressed.latencies == []


def test_requests_are_sent_when_they_are_due_and_their_latency_counts_from_then() -> None:
    """A server that answers nobody until all have asked: clients that waited for answers would wait for ever."""
    order = Order(0, (), 0.4, rate=50.0)
    due = list(due_times(order))

    async def run() -> Pressed:
        asked, everybody = 0, asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal asked
            await read_request(reader)
            asked += 1
            if asked == len(due):
                everybody.set()
            await everybody.wait()
            writer.write(OK)

        async with answering(serve) as port:
            placed = dataclasses.replace(order, port=port)
            return await Presser(placed, [as_binary(IMAGES[:1])]).press()

    pressed = asyncio.run(run())
    assert (pressed.requests, pressed.failures) == (len(due), {})
    assert max(pressed.latencies) - min(pressed.latencies) > 0.5 * (due[-1] - due[0])
    assert all(late <= latency for late, latency in zip(pressed.late, pressed.latencies, strict=True))


def test_random_times_have_their_rate_and_their_seed() -> None:
    order = Order(0, (), 100.0, rate=50.0, poisson=True, seed=3)
    due = list(due_times(order))
    assert len(due) == pytest.approx(5000, rel=0.1)
    assert due == list(due_times(order))
    gaps = np.diff(due)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.1)  # as of an exponential distribution


@pytest.mark.parametrize("client", ["own", "wrk"])
def test_clients_in_a_process_of_their_own_get_answers(client: Client, tmp_path: Path) -> None:
    if client == "wrk" and shutil.which("wrk") is None:
        pytest.skip("wrk is not installed")
    files = tuple(str(path) for path in write_requests(tmp_path, IMAGES, 8, 3))
    double = GuardDouble()
    with serving(double, SETTINGS) as running:
        pressed = press(Order(running.port, files, 1.0, clients=2), client)
        assert pressed.failures == {}
        assert pressed.requests > 0
        assert sum(double.batches) >= 8 * pressed.requests
        wrong = tmp_path / "wrong.http"
        wrong.write_bytes(as_binary(IMAGES[:1], datatype="INT8"))
        refused = press(Order(running.port, (str(wrong),), 1.0, clients=1), client)
        assert refused.requests == 0
        assert sum(refused.failures.values()) > 0


def test_requests_are_what_the_server_reads(tmp_path: Path) -> None:
    card = small_guard().saved.card
    for request in (as_binary(IMAGES[:3], ANSWERS), as_json(IMAGES[:3], ANSWERS)):
        head, _, body = request.partition(b"\r\n\r\n")
        length = head.lower().partition(b"inference-header-content-length: ")[2].partition(b"\r\n")[0].decode()
        asked = decode_request(body, length or None, card)
        assert np.array_equal(asked.images.astype(np.float32), IMAGES[:3])
        assert list(asked.outputs) == list(ANSWERS)
        assert all(asked.outputs.values())
    paths = write_requests(tmp_path, IMAGES, 64, 2)
    assert [path.name for path in paths] == ["64-000.http", "64-001.http"]
    assert paths[0].read_bytes() != paths[1].read_bytes()


def sound(expected: Expected, rows: Sequence[int], **changes: Any) -> Answer:
    verdict = expected.of((0, 1, 2))
    answer = Answer(
        verdict.labels.numpy()[rows],
        verdict.abstained.numpy()[rows],
        verdict.failure_probability.numpy()[rows],
        verdict.version_labels.numpy()[rows],
        degraded=False,
        ground="all versions",
        problems=frozenset(),
    )
    return dataclasses.replace(answer, **changes)


def test_wrong_answers_are_seen() -> None:
    expected, rows = Expected(small_guard(), IMAGES), np.array([3, 1, 4, 1, 5])
    answer = sound(expected, rows)
    assert expected.problem(rows, answer) == ""
    without = answer.version_labels.copy()
    without[:, 1] = -1
    for problem, changed in {
        "another label": sound(expected, rows, labels=(answer.labels + 1) % 3),
        "a version said something else": sound(expected, rows, version_labels=(answer.version_labels + 1) % 3),
        "another failure probability": sound(expected, rows, failure_probability=answer.failure_probability + 0.1),
        "it abstains elsewhere": sound(expected, rows, abstained=~answer.abstained),
        "degraded is True": sound(expected, rows, degraded=True),
        "degraded is False": sound(expected, rows, version_labels=without),
        "4 answers to 5 images": sound(expected, rows[:4]),
        "problems at [2]": sound(expected, rows, problems=frozenset({2})),
        "it rests on 'fallback'": sound(expected, rows, ground="fallback"),
        "no version answered": sound(expected, rows, version_labels=np.full_like(without, -1), degraded=True),
    }.items():
        assert expected.problem(rows, changed).startswith(problem)
    judged = sound(expected, rows, problems=frozenset({0}))
    assert expected.problem(np.array([-1, 1, 4, 1, 5]), judged) == "an image that is not sound was judged"


def test_answers_of_some_versions_are_compared_with_the_guard_of_these() -> None:
    guard = small_guard()
    expected, rows = Expected(guard, IMAGES, [(0, 1), (0, 2)]), np.arange(len(IMAGES))
    left = guard.without(["noisy"])(torch.from_numpy(IMAGES))
    labels = np.insert(left.version_labels.numpy(), 1, -1, axis=1)
    answer = sound(
        expected,
        rows,
        labels=left.labels.numpy(),
        failure_probability=left.failure_probability.numpy(),
        abstained=left.abstained.numpy(),
        version_labels=labels,
        ground="versions left",
    )
    assert expected.problem(rows, answer) == ""
    whole = expected.of((0, 1, 2)).failure_probability.numpy()
    assert expected.problem(rows, dataclasses.replace(answer, failure_probability=whole)) != ""


def test_the_server_refuses_what_is_malformed_as_it_should() -> None:
    async def statuses(port: int) -> list[int]:
        async with Connections(port) as connections:
            return [(await connections.ask(each.request)).status for each in malformed(IMAGES[:1])]

    with serving(GuardDouble(), SETTINGS) as running, asyncio.Runner(loop_factory=new_loop) as runner:
        assert runner.run(statuses(running.port)) == [each.status for each in malformed(IMAGES[:1])]


def test_spoilt_images_are_known_by_their_rows() -> None:
    draw, rows = random.Random(0), np.arange(8)
    for _ in range(20):
        images, marked = spoilt(IMAGES[:8], rows, draw)
        fine = ((images >= 0) & (images <= 1)).all((1, 2, 3))
        assert np.array_equal(fine, marked >= 0)
        assert not fine.all()
    assert np.array_equal(rows, np.arange(8))


def run_soaker(double: GuardDouble, requests: int) -> tuple[Soak, int]:
    """A soak, and the server's own count of its errors."""
    told = Soak("in process")
    as_seen = np.rint(IMAGES * 255).astype(np.float32) / np.float32(255)
    expected = Expected(small_guard(), np.concatenate([IMAGES, as_seen]))
    with attached(double) as server, asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(Soaker(IMAGES, expected, server, told, seed=0).run(requests, 60.0))
        return told, server_errors(server.metrics())


def test_a_sound_server_is_found_to_be_sound() -> None:
    told, errors = run_soaker(GuardDouble(), 400)
    assert (told.wrong, told.lost, errors, told.degraded) == ({}, {}, 0, 0)
    assert told.requests >= 400
    assert all(told.kinds.values())
    assert len(told.samples) > 0
    assert "400" in "\n".join(soak_lines([told]))


def test_a_server_that_lies_is_found_out() -> None:
    class Lying(GuardDouble):
        def _answer(self, images: torch.Tensor) -> Any:
            verdict = super()._answer(images)
            return dataclasses.replace(verdict, labels=torch.where(verdict.labels >= 0, 0, -1))

    told, _ = run_soaker(Lying(), 60)
    assert any("another label" in problem for problem in told.wrong)
    assert told.lost == {}


def test_a_guard_that_fails_is_counted_by_both_sides() -> None:
    double = GuardDouble()

    def fails(images: torch.Tensor) -> None:
        raise RuntimeError("broken")

    double.poison = fails
    told, errors = run_soaker(double, 60)
    assert errors > 0
    assert any("status 500" in problem for problem in told.wrong)


def test_versions_are_swapped_and_set_aside_under_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swapping, "_QUIET", 4)
    double = Operated()
    double.make_shadow("odd")
    with attached(double) as server:
        told = swap_under_load(subject(), server, 2)
    assert (told.swaps, told.quarantines, told.refused) == (2, 2, {})
    assert (told.failed, told.wrong, told.stale) == ({}, {}, 0)
    assert told.requests >= told.whole + told.apart
    assert told.whole >= 5 * 4  # at first, after each swap, and after each release
    assert told.apart >= 2 * 4
    assert all(bar.verdict == "reached" for bar in swapping.bars_for(told, 2))


def test_a_flag_that_is_forgotten_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Boasting(Operated):
        def _answer(self, images: torch.Tensor) -> Any:
            verdict = super()._answer(images)
            health = tuple(dataclasses.replace(each, state="shadow") for each in verdict.health)
            return dataclasses.replace(verdict, health=health)

    monkeypatch.setattr(swapping, "_QUIET", 4)
    double = Boasting()
    double.make_shadow("odd")
    with attached(double) as server:
        told = swap_under_load(subject(), server, 1)
    assert any(problem.startswith("degraded is False") for problem in told.wrong)


def test_answers_of_versions_that_were_gone_are_stale() -> None:
    expected = Expected(small_guard(), IMAGES)
    answer = sound(expected, np.array([0, 1]))
    told, periods = Swapping(), [Period((0, 1, 2), 0.0, 1.0), Period((0, 2), 2.0, 3.0)]
    times = [(0.1, 0.9), (0.9, 1.1), (1.9, 2.1), (2.1, 2.9)]
    sort_out(told, [Told(answer, *time) for time in times], periods, frozenset({(0, 1, 2)}))
    assert (told.whole, told.apart, told.stale) == (1, 1, 1)


def test_memory_that_grows_is_told_from_memory_that_does_not() -> None:
    def samples(warm: int, leak: int) -> list[Sample]:
        draw = random.Random(0)
        size = 400 << 20
        return [
            Sample(n * 100, size + min(n * 100, 5000) * warm + n * 100 * leak + draw.randrange(1 << 20))
            for n in range(501)
        ]

    flat, leaking = growth_of(samples(warm=5000, leak=0)), growth_of(samples(warm=5000, leak=1000))
    assert abs(flat.slope) < 0.1
    assert abs(flat.total) < 1.0
    assert leaking.slope == pytest.approx(1000 * 10_000 / 2**20, rel=0.05)
    assert leaking.total > 30
    assert np.isnan(growth_of(samples(0, 0)[:3]).slope)


def test_ways_take_turns_on_the_same_batches() -> None:
    order: list[tuple[str, int]] = []
    batches = [torch.full((1,), float(number)) for number in range(3)]
    ways = {name: lambda batch, name=name: order.append((name, int(batch))) for name in "abc"}
    seconds = time_ways(ways, batches, 3)
    assert [len(each) for each in seconds.values()] == [3, 3, 3]
    rounds = [order[start : start + 3] for start in range(6, 15, 3)]  # after two that warm up
    assert ["".join(name for name, _ in each) for each in rounds] == ["abc", "bca", "cab"]
    assert [{number for _, number in each} for each in rounds] == [{0}, {1}, {2}]


def test_what_guarding_costs_is_measured_and_explained_where_it_is_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "MOST", 0.0)
    measured = measure_overhead(subject(), rounds=2, profile=1)
    costs = {cost.way: cost for cost in measured.costs}
    assert costs[LOOP].ratio.median == 1.0
    assert costs[overhead.RUNTIME].ratio.median > 1.0  # of versions that are one multiplication each
    assert [bar.verdict for bar in overhead.bars_for([measured])] == ["MISSED"] * 3
    assert len(overhead.cost_lines([measured])) == 1 + len(costs)
    assert any("runtime/core.answer" in line for line in place_lines([measured]))


def test_what_we_use_ourselves_is_not_others() -> None:
    used = iter([0.0, 1e9])
    assert machine.Others(lambda: next(used)).cores() == 0.0
    assert machine.Others(lambda: 0.0).cores() >= 0.0
    assert 0 < machine.busy_seconds() <= (psutil.cpu_count() or 1) * psutil.boot_time()


def made_throughput(*rates: float, failures: int = 0) -> Throughput:
    return Throughput(
        1,
        192,
        "own",
        tuple(Burst(rate, 100.0, 60.0, 0.1, 1.2, 0.0, {"503": failures} if failures else {}) for rate in rates),
    )


def test_throughput_is_held_against_the_runtime_in_process() -> None:
    fast, slow = made_throughput(80.0, 95.0, 95.0), made_throughput(80.0, 80.0, 95.0, failures=1)
    assert [bar.verdict for bar in throughput.bars_for([fast])] == ["reached", "reached"]
    assert [bar.verdict for bar in throughput.bars_for([slow])] == ["MISSED", "MISSED"]
    assert fast.rate == 95.0
    assert "0.95" in "\n".join(throughput.throughput_lines([fast]))


def test_latency_is_held_against_the_model_time() -> None:
    wave = Wave(0.01, 0.02, 0.05, 0.001, 0.04, 0.01, 12.0, 0.0, 100, {})
    even, late = Latency("even", 70.0, (wave,) * 3), Latency("even", 70.0, (dataclasses.replace(wave, p99=0.1),) * 3)
    assert even.ratio("p99").median == pytest.approx(1.25)
    assert even.ratio("p99", "small").median == pytest.approx(5.0)
    assert [bar.verdict for bar in latency.bars_for([even])] == ["reached", "reached"]
    assert [bar.verdict for bar in latency.bars_for([late])] == ["MISSED", "reached"]
    random_ones = dataclasses.replace(late, arrivals="random")
    assert [bar.text for bar in latency.bars_for([random_ones])] == ["requests without an answer"]
    assert "50.0" in "\n".join(latency.latency_lines([even]))


def test_only_fitted_decisions_stay_in_a_state(tmp_path: Path) -> None:
    (tmp_path / "derived").mkdir()
    (tmp_path / "derived" / "kept").touch()
    (tmp_path / "state.json").touch()
    assert fresh_state(tmp_path) == tmp_path
    assert [path.name for path in tmp_path.rglob("*")] == ["derived", "kept"]
    assert not list(fresh_state(tmp_path / "new").glob("*"))


def test_metrics_are_summed_over_their_labels() -> None:
    told = {'a{x="1"}': 1.0, 'a{x="2"}': 2.0, "ab": 4.0}
    assert metric(told, "a") == 3.0
    assert metric(told, "ab") == 4.0
    assert metric(told, "b") == 0.0


def test_answers_are_read_as_they_were_sent() -> None:
    double = GuardDouble()

    async def ask(port: int) -> Reply:
        async with Connections(port) as connections:
            return await connections.ask(as_binary(IMAGES[:5], ANSWERS))

    with serving(double, SETTINGS) as running, asyncio.Runner(loop_factory=new_loop) as runner:
        answer = answer_of(runner.run(ask(running.port)))
    verdict = double.guard(torch.from_numpy(IMAGES[:5]))
    assert np.array_equal(answer.labels, verdict.labels)
    assert np.array_equal(answer.version_labels, verdict.version_labels)
    assert np.allclose(answer.failure_probability, verdict.failure_probability)
    assert answer.columns == (0, 1, 2)
    assert not answer.degraded


@pytest.mark.parametrize("module", [figures, memory, pressing, server], ids=lambda module: module.__name__)
def test_doctests(module: ModuleType) -> None:
    results = doctest.testmod(module)
    assert results.attempted > 0
    assert results.failed == 0


def test_everything_measured_can_be_written_as_json() -> None:
    told, swapped = Soak("in process", samples=[Sample(1, 2)]), Swapping(recoveries=[0.5])
    told.wrong["another label"] += 2
    swapped.failed["503"] += 1
    results = benchmark.Results()
    results.add("soak", [told], soak_lines([told]), [])
    results.add("swap", swapped, swapping.swap_lines(swapped), swapping.bars_for(swapped, 1))
    content = json.loads(json.dumps(results_json({}, results.parts, results.bars)))
    assert content["soak"][0]["wrong"] == {"another label": 2}
    assert content["soak"][0]["samples"] == [{"requests": 1, "bytes": 2}]
    assert content["swap"]["failed"] == {"503": 1}


def test_parts_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["serving.py", "--quick", "--only", "soak", "swap"])
    options = benchmark.arguments()
    assert options.only == ["soak", "swap"]
    assert set(benchmark.MEASURES) == set(benchmark.PARTS)
    assert benchmark.Amount().soak >= 50_000
    assert benchmark.Amount().turns >= 20
