"""Asking the guard about a batch of requests, such that none of them can fail the others."""

import logging
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepfailguard.errors import DataFormatError, GuardLostError
from deepfailguard.guard.verdict import Verdict
from deepfailguard.serving.answers import Answer, Batch, batch_of, part_of
from deepfailguard.serving.base import Runtime
from deepfailguard.serving.refusing import LOST_FOR, RefusedError

__all__ = ["Job", "answer_jobs"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """What a request wants to be asked.

    Attributes:
        images: (B, C, H, W) floating point.
        until: when the answer is too late.
    """

    images: NDArray[Any]
    until: float


def answer_jobs(
    runtime: Runtime,
    jobs: Sequence[Job],
    deadline: float,
    observe: Callable[[Batch, float], None],
    turn: threading.Lock,
    done: Callable[[], None],
) -> list[Answer | RefusedError]:
    """What to tell each request. Never raises.

    If the guard itself fails on the batch, each request is asked alone once; one that fails again is refused with an
    id that stands in the log.

    Args:
        runtime: the guard.
        jobs: the requests.
        deadline: what the server allows a request, in seconds; for the message only.
        observe: is told of each batch.
        turn: held while the guard is asked: its own deadline must not pass while it answers the batch before.
        done: is called as soon as the guard is, before its verdict is taken apart.
    """
    try:
        try:
            verdict, seconds = _ask(runtime, jobs, turn)
        finally:
            done()
        return list(_answers(verdict, seconds, jobs, observe))
    except GuardLostError as error:  # whoever asked for what took it down must not do so again at once
        return [_lost(error) for _ in jobs]
    except Exception as error:  # whatever it is: these are requests of different clients
        logger.warning("a batch of %d requests failed: %r; each is asked alone", len(jobs), error)
    return [_ask_alone(runtime, job, deadline, observe, turn) for job in jobs]


def _ask_alone(
    runtime: Runtime, job: Job, deadline: float, observe: Callable[[Batch, float], None], turn: threading.Lock
) -> Answer | RefusedError:
    if job.until <= time.monotonic():
        return RefusedError(504, f"there was no answer within the deadline of {deadline:g} s; ask again", 1)
    try:
        return _answers(*_ask(runtime, [job], turn), [job], observe)[0]
    except DataFormatError as error:
        return RefusedError(400, str(error))
    except GuardLostError as error:
        return _lost(error)
    except Exception:
        number = uuid.uuid4().hex[:12]
        logger.exception("request %s failed", number)
        return RefusedError(
            500, f"the guard failed on this request; the log of the server tells why, look for {number}"
        )


def _lost(error: GuardLostError) -> RefusedError:
    return RefusedError(503, str(error), LOST_FOR)


def _ask(runtime: Runtime, jobs: Sequence[Job], turn: threading.Lock) -> tuple[Verdict, float]:
    """The verdict on all images, and the seconds that it took."""
    images = _tensor([job.images for job in jobs])
    # By its own deadline, not by the requests': one that is in a hurry must not make the guard leave versions out of
    # others' answers, and a version that hangs must not take the time of those that wait behind.
    with turn:
        began = time.monotonic()
        verdict = runtime(images)
        took = time.monotonic() - began
    if len(verdict) != len(images):
        raise RuntimeError(f"the guard gave {len(verdict)} answers to {len(images)} images")
    return verdict, took


def _answers(
    verdict: Verdict, seconds: float, jobs: Sequence[Job], observe: Callable[[Batch, float], None]
) -> list[Answer]:
    batch = batch_of(verdict)
    _tell(observe, batch, seconds)
    answers, start = [], 0
    for job in jobs:
        answers.append(part_of(batch, start, start + len(job.images)))
        start += len(job.images)
    return answers


def _tell(observe: Callable[[Batch, float], None], batch: Batch, seconds: float) -> None:
    try:
        observe(batch, seconds)
    except Exception:  # who looks on must not take the answer down
        logger.exception("a batch could not be counted")


def _tensor(images: Sequence[NDArray[Any]]) -> Tensor:
    """One batch (B, C, H, W) float32 that nobody else holds; values too large for float32 become infinite."""
    with np.errstate(over="ignore"):
        return torch.from_numpy(np.concatenate(images, dtype=np.float32, casting="same_kind"))
