"""A version's own process: answers what comes over a line until that is closed."""

import faulthandler
import fcntl
import os
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import torch

from deepfailguard.boundary.base import DistanceEstimator
from deepfailguard.errors import ConfigurationError
from deepfailguard.runtime.base import Source
from deepfailguard.runtime.long_lived import freeze_objects
from deepfailguard.runtime.runners.loaded import LoadedVersion
from deepfailguard.runtime.runners.wire import Message, answers_message, question_of, receive, send

__all__ = ["Briefing", "serve", "stand_apart"]


@dataclass(frozen=True, slots=True)
class Briefing:
    """What a process must know of its version.

    Attributes:
        name: the version's.
        source: of its sound weights.
        distance: tells boundary distances; None if nobody needs them.
        cache: folder of distances; None for none.
        threads: of torch (>= 1); None for torch's own choice.
    """

    name: str
    source: Source
    distance: DistanceEstimator | None
    cache: Path | None
    threads: int | None


def serve(line: Connection) -> None:
    """Take a briefing, load the version, answer each question."""
    stand_apart()
    faulthandler.enable()  # a crash says where
    with suppress(EOFError, OSError):  # the runtime is done with this process, or gone
        loaded = _load(line)
        freeze_objects()
        while loaded is not None:
            _answer(line, loaded)


def stand_apart() -> None:
    """End with the runtime, in whatever way that ends, and by nothing else that is meant for it (Ctrl-C, say)."""
    for number in (signal.SIGINT, signal.SIGTERM):  # before it ends, the runtime has answers to wait for
        signal.signal(number, signal.SIG_IGN)
    os.setsid()
    parent = parent_process()
    if parent is None:
        return
    if hasattr(fcntl, "F_SETSIG"):  # Linux: it kills this process when the runtime's breaks off, even if it hangs
        fcntl.fcntl(parent.sentinel, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(parent.sentinel, fcntl.F_SETSIG, signal.SIGKILL)
        flags = fcntl.fcntl(parent.sentinel, fcntl.F_GETFL)
        fcntl.fcntl(parent.sentinel, fcntl.F_SETFL, flags | os.O_ASYNC)
    if not parent.is_alive():
        sys.exit(1)  # it ended before


def _load(line: Connection) -> LoadedVersion | None:
    briefing = line.recv_bytes()
    try:
        told = _unpacked(briefing)
        if told.threads is not None:
            torch.set_num_threads(told.threads)
        loaded = LoadedVersion.load(told.name, told.source, told.distance, told.cache)
    except Exception as error:
        send(line, Message("failed", {"error": type(error).__name__, "text": str(error)}))
        return None
    send(line, Message("ready", {"classes": loaded.version.classes}))
    return loaded


def _unpacked(briefing: bytes) -> Briefing:
    try:
        told: Briefing = ForkingPickler.loads(briefing)
    except Exception as error:  # whatever an import of anybody's code raises
        raise ConfigurationError(
            f"what the version's process was sent cannot be read there: {type(error).__name__}: {error}; "
            "define classes of models, estimators and sources at the top of a module that can be imported"
        ) from error
    return told


def _answer(line: Connection, loaded: LoadedVersion) -> None:
    message = receive(line)
    if message.kind == "question":
        send(line, answers_message(loaded.ask(question_of(message))))
    else:
        changed = loaded.rotation.check(message.facts["seconds"])
        send(line, Message("checked", {"changed": list(changed)}))
