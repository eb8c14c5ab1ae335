import threading
from collections.abc import Iterator
from concurrent.futures import wait

import pytest

from deepfailguard.errors import VersionLostError
from deepfailguard.runtime.runners.lane import Lane

SECONDS = 30.0


class Gate:
    """Work that goes on when it may."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.open = threading.Event()

    def __call__(self) -> str:
        self.entered.set()
        assert self.open.wait(SECONDS)
        return "late"


@pytest.fixture
def lane() -> Iterator[Lane]:
    lane = Lane("test lane")
    yield lane
    lane.close(SECONDS)
    assert not [thread for thread in threading.enumerate() if thread.name == "test lane"]


def blocked(lane: Lane, owner: object = "other") -> Gate:
    gate = Gate()
    lane.submit(owner, gate)
    assert gate.entered.wait(SECONDS)
    return gate


def test_jobs_are_done_in_order_on_one_thread(lane: Lane) -> None:
    gate = blocked(lane)
    threads, order = set(), []

    def work(number: int) -> int:
        threads.add(threading.current_thread())
        order.append(number)
        return number

    futures = [lane.submit(number % 2, lambda number=number: work(number)) for number in range(20)]  # type: ignore[misc]
    gate.open.set()
    assert [future.result(SECONDS) for future in futures] == order == list(range(20))
    assert len(threads) == 1


@pytest.mark.parametrize("error", [RuntimeError("broken"), SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_an_error_ends_its_job_only(lane: Lane, error: BaseException) -> None:
    def fail() -> None:
        raise error

    assert lane.submit("me", fail).exception(SECONDS) is error
    assert lane.submit("me", lambda: 5).result(SECONDS) == 5


def test_at_most_one_patient_job_comes_between_two_others_and_none_starves(lane: Lane) -> None:
    gate = blocked(lane)
    order: list[str] = []
    futures = [lane.submit("me", lambda: order.append("patient"), patient=True) for _ in range(3)]
    futures += [lane.submit("me", lambda: order.append("ask")) for _ in range(5)]
    gate.open.set()
    wait(futures, SECONDS)
    assert order == ["patient", "ask"] * 3 + ["ask"] * 2


def test_a_job_that_is_left_alone_holds_up_nobody(lane: Lane) -> None:
    gate = Gate()
    future = lane.submit("stuck", gate)
    assert gate.entered.wait(SECONDS)
    after = lane.submit("other", lambda: "done")
    assert lane.leave("other") is None
    job = lane.leave("stuck")
    assert job is not None
    assert job.future is future
    assert after.result(SECONDS) == "done"
    assert lane.submit("other", lambda: "again").result(SECONDS) == "again"
    assert job.under_way
    assert not lane.holds("stuck")
    job.fail(VersionLostError("given up"))
    gate.open.set()
    with pytest.raises(VersionLostError, match="given up"):  # not the late result
        future.result(SECONDS)
    while job.under_way:
        pass


def test_a_lane_is_free_before_the_result_is_told(lane: Lane) -> None:
    held: list[bool] = []
    for _ in range(50):
        future = lane.submit("me", lambda: None)
        future.add_done_callback(lambda _: held.append(lane.holds("me")))
        future.result(SECONDS)
    assert lane.submit("me", lambda: None).result(SECONDS) is None
    assert not any(held[:50])


def test_jobs_that_wait_can_be_cancelled_and_dropped(lane: Lane) -> None:
    gate = blocked(lane)
    cancelled, dropped, kept = (lane.submit(owner, lambda: 1) for owner in ("me", "me", "she"))
    assert lane.waiting("me")
    assert cancelled.cancel()
    lane.drop("me", VersionLostError("dropped"))
    assert not lane.waiting("me")
    assert lane.waiting("she")
    gate.open.set()
    with pytest.raises(VersionLostError, match="dropped"):
        dropped.result(SECONDS)
    assert kept.result(SECONDS) == 1
    assert cancelled.cancelled()


def test_a_closed_lane_finishes_what_waits_and_takes_no_more() -> None:
    lane = Lane("test lane")
    gate = blocked(lane)
    waiting = lane.submit("me", lambda: 1)
    lane.close()
    gate.open.set()
    assert waiting.result(SECONDS) == 1
    with pytest.raises(VersionLostError, match="test lane was closed"):
        lane.submit("me", lambda: 1).result(SECONDS)
    lane.close(SECONDS)


def test_a_thread_that_does_not_last_ends_with_its_work() -> None:
    lane = Lane("short lane", lasting=False)
    for _ in range(3):
        assert lane.submit("me", lambda: 1).result(SECONDS) == 1
    for thread in threading.enumerate():
        if thread.name == "short lane":
            thread.join(SECONDS)
            assert not thread.is_alive()
