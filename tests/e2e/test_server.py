"""`deepfailguard serve` as operators and clients meet it: a process, a saved guard, and clients that people have."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from PIL import Image

from deepfailguard.guard.guarded import GuardedPredictor
from tests.serving_examples import images_of, save_own_guard

ROOT = Path(__file__).resolve().parents[2]
ADMIN = "a-key-for-operators"


class Saved(NamedTuple):
    work: Path
    guard: GuardedPredictor


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    work = tmp_path_factory.mktemp("work")
    return Saved(work, save_own_guard(work))


class Server(NamedTuple):
    process: "subprocess.Popen[str]"
    http: str
    grpc: str
    log: Path

    def get(self, path: str) -> Any:
        return httpx.get(f"http://{self.http}{path}", timeout=60, verify=False)

    def post(self, path: str, content: Any = None) -> Any:
        headers = {"X-API-Key": ADMIN}
        return httpx.post(f"http://{self.http}{path}", json=content, headers=headers, timeout=60, verify=False)


@contextmanager
def served(work: Path, *arguments: str) -> Iterator[Server]:
    """The command in a process of its own, started where its user works; ended if the test did not end it."""
    command = [sys.executable, "-m", "deepfailguard.cli.main", "serve", "guard", "--port", "0", "--grpc-port", "0"]
    command += ["--deadline", "60"]  # on a busy machine too
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "DEEPFAILGUARD_ADMIN_KEY": ADMIN}
    log = work / f"log-{time.monotonic_ns()}"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [*command, "--trusted", "own_nets", *arguments],
            cwd=work,
            env=environment,
            stdout=stream,
            stderr=stream,
            text=True,
        )
        try:
            until(lambda: "serving on" in log.read_text() or process.poll() is not None)
            found = re.search(r"serving on http://(\S+); gRPC on (\S+)", log.read_text())
            assert found, log.read_text()
            yield Server(process, found[1], found[2], log)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(60)


def until(condition: Callable[[], object]) -> None:
    last = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < last, "it did not come to that"
        time.sleep(0.02)


def ask(module: Any, address: str, images: Any) -> Any:
    client = module.InferenceServerClient(address)
    tensor = module.InferInput("images", list(images.shape), "FP32")
    tensor.set_data_from_numpy(images)
    answer = client.infer("guard", [tensor])
    client.close()
    return answer


@pytest.mark.parametrize("isolation", ["in process", "processes"])
def test_a_saved_guard_is_served(saved: Saved, isolation: str) -> None:
    images = images_of(20)
    expected = saved.guard(images)
    with served(saved.work, "--isolation", isolation, "--state", f"state-{isolation[:2]}") as server:
        assert server.get("/v2/health/ready").status_code == 200
        for module, address in ((tritonclient.http, server.http), (tritonclient.grpc, server.grpc)):
            answer = ask(module, address, images.numpy())
            assert np.array_equal(answer.as_numpy("labels"), expected.labels)
            assert np.allclose(answer.as_numpy("failure_probability"), expected.failure_probability)
        assert _operated(server)
        assert server.get("/status").json()["isolation"] == isolation
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(60) == 0, server.log.read_text()
    log = (saved.work / f"state-{isolation[:2]}" / "events.jsonl").read_text()
    events = [json.loads(line)["event"] for line in log.splitlines()]
    assert "starting" in events
    assert events[-1] == "closed"


def _operated(server: Server) -> bool:
    """A version is set aside, seen to be gone, and released."""
    assert httpx.post(f"http://{server.http}/versions/odd/quarantine", json={"reason": "x"}).status_code == 401
    assert server.post("/versions/odd/quarantine", {"reason": "it looks sick"}).status_code == 200
    stream = io.BytesIO()
    Image.fromarray((images_of(1)[0, 0].numpy() * 255).astype(np.uint8)).save(stream, "PNG")
    files = {"file": ("a.png", stream.getvalue(), "image/png")}
    told = httpx.post(f"http://{server.http}/predict", files=files, timeout=60).json()
    assert told["degraded"]
    assert told["versions"][2]["state"] == "quarantined"
    assert told["versions"][2]["label"] == -1
    assert 'deepfailguard_version_state{state="quarantined",version="odd"} 1.0' in server.get("/metrics").text
    assert server.post("/versions/odd/release").status_code == 200
    until(lambda: server.get("/health").json()["serving"] == 3)
    return True


def test_a_shadow_takes_a_versions_place_while_it_serves(saved: Saved) -> None:
    with served(saved.work, "--standby", "noisy") as server:
        states = {each["name"]: each["state"] for each in server.get("/health").json()["versions"]}
        assert states == {"steady": "serving", "noisy": "shadow", "odd": "serving"}
        swapped = server.post("/versions/swap", {"leaving": "odd", "entering": "noisy", "force": True})
        assert swapped.status_code == 200, swapped.text
        states = {each["name"]: each["state"] for each in server.get("/health").json()["versions"]}
        assert states == {"steady": "serving", "noisy": "serving", "odd": "shadow"}
        refused = server.post("/versions/swap", {"leaving": "steady", "entering": "steady"})
        assert refused.status_code == 409


def test_sigterm_loses_no_accepted_request(saved: Saved) -> None:
    """The versions wait while there is a file: so there is something to be lost."""
    hold = saved.work / "hold"
    with served(saved.work, "--max-batch", "2") as server, ThreadPoolExecutor(8) as pool:
        ask(tritonclient.http, server.http, images_of(1).numpy())
        hold.touch()
        try:
            modules = [(tritonclient.http, server.http), (tritonclient.grpc, server.grpc)] * 4
            accepted = [pool.submit(ask, *each, images_of(1, seed).numpy()) for seed, each in enumerate(modules)]
            until(lambda: _open_requests(server) == 8)
            server.process.send_signal(signal.SIGTERM)
            until(lambda: server.get("/v2/health/ready").status_code == 503)
            assert server.get("/v2/health/live").status_code == 200
        finally:
            hold.unlink()
        for seed, each in enumerate(accepted):
            expected = saved.guard(images_of(1, seed)).labels
            assert each.result(60).as_numpy("labels").tolist() == expected.tolist()
        assert server.process.wait(60) == 0, server.log.read_text()
    assert "Traceback" not in server.log.read_text()


def _open_requests(server: Server) -> float:
    found = re.search(r"^deepfailguard_open_requests (\S+)", server.get("/metrics").text, re.M)
    assert found
    return float(found[1])
