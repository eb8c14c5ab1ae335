"""Metrics while the guard's process is lost, and of batches that end at the same time."""

import asyncio
import sys
import threading
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from deepfailguard.errors import GuardLostError
from deepfailguard.runtime.status import Status
from deepfailguard.serving.app import create_app, service_of
from deepfailguard.serving.metrics import Metrics, _Probabilities
from deepfailguard.serving.settings import ServerSettings
from tests.serving_examples import GuardDouble

READY = "deepfailguard_ready"


class LostGuard(GuardDouble):
    """A guard whose process ended."""

    def status(self) -> Status:
        raise GuardLostError("the guard's process ended")


def metrics_of(double: GuardDouble) -> httpx.Response:
    """What /metrics tells after a request that was counted."""

    async def whole() -> httpx.Response:
        app = create_app(double, ServerSettings())
        try:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://guard") as client:
                assert (await client.get("/v2/health/live")).status_code == 200
                return await client.get("/metrics")
        finally:
            service_of(app).close()

    return asyncio.run(whole())


def samples_of(text: str) -> dict[str, float]:
    families = text_string_to_metric_families(text)
    return {sample.name: sample.value for family in families for sample in family.samples}


def test_while_the_guard_is_lost_it_is_not_ready_and_the_server_counts_on() -> None:
    answer = metrics_of(LostGuard())
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    told = samples_of(answer.text)
    assert told[READY] == 0
    assert told["deepfailguard_request_seconds_count"] == 1
    assert told["deepfailguard_queue_images"] == 0
    assert not any(name.startswith(("deepfailguard_version", "deepfailguard_inputs")) for name in told)


def test_an_alarm_sees_the_same_metric_whether_the_guard_is_lost_or_not() -> None:
    metrics = Metrics(lambda: 0, lambda: 0, 8)
    for status, ready in ((GuardDouble().status(), 1), (GuardDouble(least_versions=4).status(), 0), (None, 0)):
        text = metrics.text(status).decode()
        assert samples_of(text)[READY] == ready
        assert f"# HELP {READY} Whether as many versions serve as must." in text


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hasty_threads")
def test_no_probability_is_lost_where_threads_observe_at_once() -> None:
    probabilities, values = _Probabilities(), np.array([0.5, 1.0])
    start = threading.Barrier(4)

    def observe() -> None:
        start.wait(60)
        for _ in range(1000):
            probabilities.observe(values)

    threads = [threading.Thread(target=observe) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    told = {sample.name + sample.labels.get("le", ""): sample.value for sample in probabilities.collect()[0].samples}
    name = "deepfailguard_failure_probability"
    assert (told[f"{name}_count"], told[f"{name}_sum"]) == (8000, 6000.0)
    assert (told[f"{name}_bucket0.3"], told[f"{name}_bucket0.5"]) == (0, 4000)
