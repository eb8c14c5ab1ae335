"""A Ray cluster for as long as the work lasts: one of this machine, or one that runs already."""

import importlib.util
import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from deepfailguard.errors import ConfigurationError

__all__ = ["cluster", "import_ray", "require_ray"]

_MISSING = "launcher=ray needs Ray, which is not installed{}; install it with: pip install 'deepfailguard[ray]'"
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # its C++ part writes to the console
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # or it warns that this will become so
}
_SECONDS_TO_ANSWER = 10.0
_SILENT = ("ray", "ray.data")


def require_ray() -> None:
    """Say at once that Ray is missing, without the seconds that its import takes."""
    if importlib.util.find_spec("ray") is None:
        raise ConfigurationError(_MISSING.format(""))


def import_ray() -> ModuleType:
    """Ray with Ray Data."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ConfigurationError(_MISSING.format(f" in full ({error})")) from error
    return ray


@contextmanager
def cluster(address: str | None, cpus: int) -> Iterator[ModuleType]:
    """Ray, connected; silent, and without telemetry and dashboard.

    Args:
        address: of a running cluster; None starts one on this machine. If this process is connected to a
            cluster already, that one is used and stays.
        cpus: of a cluster on this machine.

    Raises:
        ConfigurationError: Ray is not installed, or no cluster answers at the address.
    """
    with _environment(_ENVIRONMENT):  # read when ray is imported, and by the processes that it starts
        ray = import_ray()
        with _quiet():
            if ray.is_initialized():
                yield ray
                return
            _connect(ray, address, cpus)
            try:
                yield ray
            finally:
                ray.shutdown()


def _connect(ray: ModuleType, address: str | None, cpus: int) -> None:
    own = {"num_cpus": cpus, "include_dashboard": False} if address is None else {}
    # "local" and not None: that would join any cluster that the environment names.
    where = address or "local"
    try:
        _knock(where)
        ray.init(address=where, log_to_driver=False, logging_level=logging.ERROR, runtime_env=_paths(), **own)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigurationError(
            f"no Ray cluster answers at the address {where!r}: {error}; "
            "start one with `ray start --head`, or leave the address out for one on this machine"
        ) from error


def _knock(address: str) -> None:
    """Find out in seconds that nobody is at HOST:PORT; Ray itself tries for minutes."""
    host, _, port = address.rpartition(":")
    if host and "://" not in address:
        socket.create_connection((host, int(port)), timeout=_SECONDS_TO_ANSWER).close()


def _paths() -> dict[str, Any]:
    # Actors must find the packages that a script put on its own path: architectures and estimators of users.
    installed = (sys.prefix, sys.base_prefix)
    ours = [str(Path(entry).resolve()) for entry in sys.path if entry and not entry.startswith(installed)]
    return {"env_vars": {"PYTHONPATH": os.pathsep.join(ours)}}


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _quiet() -> Iterator[None]:
    # Ray logs each block that failed with its whole traceback; the launcher reports them itself.
    loggers = [logging.getLogger(name) for name in _SILENT]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
