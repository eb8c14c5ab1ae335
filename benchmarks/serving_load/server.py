"""`deepfailguard serve` as a process of its own, and what can be asked about it."""

import http.client
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

import psutil  # type: ignore[import-untyped]

__all__ = ["ADMIN_KEY", "ROOT", "Server", "metric", "metrics_of"]

ROOT: Final = Path(__file__).resolve().parents[2]
ADMIN_KEY: Final = "a-key-for-benchmarks-alone"
_DEADLINE: Final = "10"  # seconds: no figure depends on it, and a busy machine makes no faults
_SECONDS_TO_START: Final = 180.0
_SECONDS_TO_END: Final = 60.0
_SECONDS_TO_SETTLE: Final = 600.0
_IDLE: Final = 0.15  # of a core
_GLANCE: Final = 0.1
_TIMEOUT: Final = 120.0
_ANNOUNCED: Final = re.compile(r"serving on http://127\.0\.0\.1:(\d+)")
_METRIC: Final = re.compile(r"^(\w+(?:\{.*\})?) (\S+)$", re.M)


class Server:
    """Serves a guard on a port that is free, with one thread for arithmetic, while it is entered.

    Args:
        guard: its folder.
        state: folder of the server's state.
        log: file for what it prints.
        arguments: of the command, beside those that say where.
    """

    def __init__(self, guard: Path, state: Path, log: Path, arguments: Sequence[str] = ()) -> None:
        self.log = log
        self.port = 0
        where = ["--port", "0", "--grpc-port", "-1", "--state", str(state), "--deadline", _DEADLINE]
        command = [sys.executable, "-m", "deepfailguard.cli.main", "serve", str(guard), *where]
        self._command = [*command, *arguments]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "DEEPFAILGUARD_ADMIN_KEY": ADMIN_KEY}
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("w") as stream:
            self._process = subprocess.Popen(self._command, cwd=ROOT, env=environment, stdout=stream, stderr=stream)
        try:
            self.port = self._port()
            self.settle()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        process = self._running()
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    @property
    def status(self) -> int | None:
        """With which status it ended; None while it runs."""
        return self._running().poll()

    def settle(self) -> None:
        """Wait until it has nothing to do: decisions are fitted in the background after the start."""
        end, before = time.monotonic() + _SECONDS_TO_SETTLE, self.cpu_seconds()
        while time.monotonic() < end:
            time.sleep(1.0)
            now = self.cpu_seconds()
            if now - before < _IDLE:
                return
            before = now
        raise TimeoutError(f"the server was still busy after {_SECONDS_TO_SETTLE:g} s; see {self.log}")

    def cpu_seconds(self) -> float:
        """Processor time that it and its processes have used."""
        return float(sum(each.cpu_times().user + each.cpu_times().system for each in self._processes()))

    def memory(self) -> int:
        """Bytes that it and its processes occupy (RSS; pages that they share count for each)."""
        return int(sum(each.memory_info().rss for each in self._processes()))

    def metrics(self) -> dict[str, float]:
        """All that it tells Prometheus, by name with labels."""
        return metrics_of(self.text("/metrics"))

    def text(self, path: str) -> str:
        """What a page holds."""
        return self._ask("GET", path)[1].decode()

    def get(self, path: str) -> Any:
        """What a page of JSON holds."""
        return json.loads(self.text(path))

    def change(self, path: str, content: Mapping[str, Any]) -> tuple[int, Any]:
        """Ask for a change as its operator: status and what came back."""
        headers = {"Content-Type": "application/json", "X-API-Key": ADMIN_KEY}
        status, body = self._ask("POST", path, json.dumps(content), headers)
        return status, json.loads(body)

    def _ask(
        self, method: str, path: str, body: str | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_TIMEOUT)
        try:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def _port(self) -> int:
        end = time.monotonic() + _SECONDS_TO_START
        while time.monotonic() < end and self._running().poll() is None:
            found = _ANNOUNCED.search(self.log.read_text())
            if found:
                return int(found[1])
            time.sleep(_GLANCE)
        raise RuntimeError(f"the server did not start; {self.log} says: {self.log.read_text()[-2000:]}")

    def _processes(self) -> list[Any]:
        server = psutil.Process(self._running().pid)
        return [server, *server.children(recursive=True)]

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._process is None:
            raise RuntimeError("the server runs only while it is entered")
        return self._process


def metrics_of(text: str) -> dict[str, float]:
    """Values by name and labels.

    >>> metrics_of('# HELP a b' + chr(10) + 'a{route="/x y",status="200"} 3.0' + chr(10) + 'b 1e-3')
    {'a{route="/x y",status="200"}': 3.0, 'b': 0.001}
    """
    return {name: float(value) for name, value in _METRIC.findall(text)}


def metric(values: Mapping[str, float], name: str) -> float:
    """The sum of a metric over all its labels; 0 if it is not there."""
    return sum(value for key, value in values.items() if key == name or key.startswith(f"{name}{{"))
