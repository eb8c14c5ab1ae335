"""A version on Ray that does as files in a folder tell it, whichever replica reads them first."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from deepfailguard.errors import CorruptFileError
from deepfailguard.serving.settings import Listening
from deepfailguard.types import Bounds
from deepfailguard.versions.version import Version
from tests.examples import CLASSES, template_model

RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "OMP_NUM_THREADS": "1",
}
CANARIES = 4
ROOT = Path(__file__).resolve().parents[1]


class Obedient(nn.Module):
    """A sound classifier of bars, until a file says otherwise: `hang-*`, `die-*`, `fail-*` or `flip-*`.

    Canary inputs, told by their number, it answers in any case: replicas are asked those at times of their own, also
    while they are loaded, and an order would be carried out by one that no test is asking.
    """

    def __init__(self, folder: Path, seed: int = 0, noise: float = 0.0) -> None:
        super().__init__()
        self.folder = folder
        self.model = template_model(seed, noise)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) != CANARIES:
            self._obey()
        logits: Tensor = self.model(x)
        return logits

    def _obey(self) -> None:
        if self._told("hang"):
            time.sleep(600)
        if self._told("die"):
            os._exit(1)
        if self._told("fail"):
            raise RuntimeError("told to")
        if self._told("flip"):
            with torch.no_grad():
                self.model.weight[0, 0] += 1e-3

    def _told(self, what: str) -> bool:
        """Whether there is such a file, which then is gone: one replica obeys each, once."""
        for path in self.folder.glob(f"{what}-*"):
            try:
                path.unlink()
            except FileNotFoundError:  # another replica was faster
                continue
            (self.folder / f"did-{what}-{os.getpid()}").touch()
            return True
        return False


@dataclass(frozen=True)
class ObedientSource:
    """Loads it, and leaves a mark in the folder each time."""

    folder: Path

    def load(self) -> Version:
        if (self.folder / "corrupt").exists():
            raise CorruptFileError("the file is not what it was")
        (self.folder / f"loaded-{os.getpid()}-{time.monotonic_ns()}").touch()
        return Version.of(Obedient(self.folder), "obedient", CLASSES, Bounds())

    def obeyed(self, what: str) -> set[int]:
        """Processes that did what they were told last."""
        return {int(path.name.rpartition("-")[2]) for path in self.folder.glob(f"did-{what}-*")}

    @property
    def loads(self) -> int:
        return len(list(self.folder.glob("loaded-*")))


def replicas_of(deployment: str) -> set[int]:
    """Processes of a deployment's replicas on this machine."""
    return {pid for pid, title in _titles() if title.startswith("ray::ServeReplica:") and _ends(title, deployment)}


def _titles() -> Iterator[tuple[int, str]]:
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"]
        if line:
            yield process.pid, line[0]


def _ends(title: str, deployment: str) -> bool:
    return title.partition(".")[0].endswith(f":{deployment}")  # after the dot: the method that it is busy with


def free_port() -> int:
    """Where nobody listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def local_ray(monkeypatch: Any, listening: Listening) -> Iterator[None]:
    """A small Ray with Serve on this machine, as far as it knows with 8 cores, without dashboard and telemetry."""
    for name, value in RAY.items():
        monkeypatch.setenv(name, value)
    import ray
    from ray import serve

    ray.init(
        address="local",
        num_cpus=8,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=200_000_000,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}},
    )
    serve.start(http_options={"host": listening.host, "port": listening.port})
    try:
        yield
    finally:
        serve.shutdown()
        ray.shutdown()
