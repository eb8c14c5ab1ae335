"""Starting clients: our own, or wrk, which takes less of the processor that it shares with the server."""

import json
import resource
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Literal

from benchmarks.serving_load.pressing import Order, Pressed
from benchmarks.serving_load.server import ROOT

__all__ = ["Client", "best_client", "press"]

Client = Literal["wrk", "own"]

_SCRIPT: Final = Path(__file__).with_name("wrk.lua")
_TOOL: Final = "wrk"
_MARK: Final = "JSON"
_ERRORS: Final = ("connect", "read", "write", "timeout")
_SPARE: Final = 120.0  # seconds


def best_client() -> Client:
    """Wrk where it is installed."""
    return "wrk" if shutil.which(_TOOL) else "own"


def press(order: Order, client: Client = "own") -> Pressed:
    """Let clients carry out an order in a process of their own; wrk knows no rates.

    Raises:
        RuntimeError: they failed.
    """
    before = _seconds_of_children()
    if client == "wrk" and order.rate is None:
        return _by_wrk(order, before)
    command = [sys.executable, "-m", "benchmarks.serving_load.pressing"]
    told: dict[str, Any] = json.loads(_run(command, json.dumps(asdict(order)), order.seconds))
    return Pressed(**told)


def _by_wrk(order: Order, before: float) -> Pressed:
    where = [f"http://127.0.0.1:{order.port}/", "--", *order.files]
    how = ["-t", "1", "-c", str(order.clients), "-d", f"{max(1, round(order.seconds))}s", "--timeout", "30s"]
    printed = _run([_TOOL, *how, "-s", str(_SCRIPT), *where], "", order.seconds)
    told = json.loads(printed.rpartition(_MARK)[2])
    failures = {name: told[name] for name in _ERRORS if told[name]}
    if told["status"]:
        failures["status"] = told["status"]
    answered = told["requests"] - told["status"]
    return Pressed(answered, told["microseconds"] / 1e6, _seconds_of_children() - before, failures)


def _run(command: list[str], given: str, seconds: float) -> str:
    ran = subprocess.run(command, input=given, capture_output=True, text=True, cwd=ROOT, timeout=seconds + _SPARE)
    if ran.returncode:
        raise RuntimeError(f"{command[0]} failed: {ran.stderr[-2000:]}")
    return ran.stdout


def _seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)  # of those that have ended
    return used.ru_utime + used.ru_stime
