"""One version as a Ray Serve deployment: replicas that look after themselves, and leave when they are not sound."""

import asyncio
import logging
import math
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, NoReturn, ParamSpec, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepfailguard.boundary.base import DistanceEstimator
from deepfailguard.errors import ConfigurationError, WrongOutputError
from deepfailguard.guard.asking import Answers
from deepfailguard.guard.canary import logits_told, mismatch, recorded
from deepfailguard.runtime.base import Question, Source
from deepfailguard.runtime.runners.loaded import LoadedVersion
from deepfailguard.runtime.runners.wire import Message, answers_message, answers_of
from deepfailguard.types import Need

__all__ = ["Briefing", "PlainAnswers", "ReplicaSettings", "VersionReplica", "heard", "plain", "version_deployment"]

_SIGNS_OFF: Final = 70  # exit code of a replica that ends itself

logger = logging.getLogger("ray.serve")  # Ray keeps what is written there for each replica

P = ParamSpec("P")
T = TypeVar("T")

PlainAnswers = tuple[dict[str, Any], dict[str, NDArray[Any]]]
"""Answers on their way: facts and arrays, which Ray copies as they are."""


@dataclass(frozen=True, slots=True)
class ReplicaSettings:
    """How each version is run on Ray. Times are in seconds.

    Attributes:
        replicas: of each version, >= 1; with one alone the version is gone for seconds when it is lost.
        most_replicas: Ray adds replicas up to so many under load; None for always `replicas`.
        replicas_per_node: at most so many of a version on one machine, so that a lost machine leaves others; None for
            as Ray likes it.
        cpus: that Ray keeps for a replica; its number of threads follows.
        gpus: that Ray keeps for a replica, also a part of one.
        hang_seconds: a replica whose model is busy for longer with one question ends itself.
        start_seconds: that loading may take.
        check_every: between looks of a replica at its own weights and canary inputs.
        upkeep_share: of the time that is spent on comparing weights, in [0, 1].
    """

    replicas: int = 2
    most_replicas: int | None = None
    replicas_per_node: int | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    hang_seconds: float = 10.0
    start_seconds: float = 120.0
    check_every: float = 5.0
    upkeep_share: float = 0.01

    def __post_init__(self) -> None:
        if self.replicas < 1:
            raise ConfigurationError(f"a version needs at least 1 replica, got {self.replicas}")
        if self.most_replicas is not None and self.most_replicas < self.replicas:
            raise ConfigurationError(f"most_replicas {self.most_replicas} is less than replicas {self.replicas}")
        for name in ("hang_seconds", "start_seconds", "check_every"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ConfigurationError(f"{name} must be a positive number of seconds, got {value}")


@dataclass(frozen=True, slots=True)
class Briefing:
    """What a replica must know of its version.

    Attributes:
        name: the version's.
        source: keeps its sound weights, wherever the replica runs.
        distance: tells boundary distances; None if nobody needs them.
        images: (M, C, H, W) float32, canary inputs.
        expected: (M, K) logits for them; None for those that it tells when it is loaded for the first time.
    """

    name: str
    source: Source
    distance: DistanceEstimator | None
    images: Tensor
    expected: Tensor | None = None


class VersionReplica:
    """Answers for one version, one question at a time; its event loop stays free while the model computes.

    A replica that is not sound does not go on: it ends its process, whereupon Ray sends its questions' askers a loss,
    routes around it at once, and starts another that loads the verified weights. Not sound is one whose model is busy
    for too long, whose weights changed, or that fails the canary inputs.

    Raises:
        DeepfailguardError: the weights cannot be loaded, or the version fails the canary inputs from the start.
    """

    def __init__(self, briefing: Briefing, settings: ReplicaSettings) -> None:
        self._briefing = briefing
        self._settings = settings
        self._expected = briefing.expected
        self._turn = asyncio.Lock()
        self._lane = ThreadPoolExecutor(1, "model")
        self._stale = False
        limit = threading.Timer(settings.start_seconds, self._leave, ["it was loaded for too long"])
        limit.start()  # Ray waits for a constructor for ever
        try:
            _without_gradients(self._load)
        finally:
            limit.cancel()

    async def ask(self, images: NDArray[np.float32], needs: frozenset[Need], measured: bool) -> PlainAnswers:
        """The answers to images (B, C, H, W)."""
        async with self._turn:
            await self._up_to_date()
            return await self._within(self._settings.hang_seconds, self._answer, images, needs, measured)

    async def check_weights(self, seconds: float) -> tuple[str, ...]:
        """Go on comparing for about this long; names of the tensors that changed."""
        async with self._turn:
            await self._up_to_date()
            limit = seconds + self._settings.hang_seconds
            return await self._within(limit, self._loaded.rotation.check, seconds)

    async def ready(self) -> None:
        """Nothing but that it is there, with weights as fresh as somebody asked for."""
        async with self._turn:
            await self._up_to_date()

    async def renew(self) -> None:
        """Load fresh weights before the next answer; returns at once."""
        self._stale = True

    async def check_health(self) -> None:
        """What Ray calls from time to time."""
        try:  # not forever: the question under way has a limit of its own, and Ray takes silence for an illness
            async with asyncio.timeout(self._settings.check_every):
                await self._turn.acquire()
        except TimeoutError:
            return
        try:
            await self._up_to_date()
            problem = await self._within(self._settings.hang_seconds, self._examine)
        finally:
            self._turn.release()
        if problem:
            self._leave(problem)

    async def _up_to_date(self) -> None:
        if self._stale:
            self._stale = False
            try:
                await self._within(self._settings.start_seconds, self._load)
            except Exception as error:  # a fresh process may have more luck, if anything has
                self._leave(f"fresh weights could not be loaded: {type(error).__name__}: {error}")

    async def _within(self, seconds: float, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do something on the model's thread, or leave: a thread that hangs cannot be ended otherwise."""
        running = asyncio.get_running_loop().run_in_executor(
            self._lane, lambda: _without_gradients(work, *args, **kwargs)
        )
        done, _ = await asyncio.wait([running], timeout=seconds)
        if not done:
            self._leave(f"the model was busy for longer than {seconds:g} s")
        return running.result()

    def _answer(self, images: NDArray[np.float32], needs: frozenset[Need], measured: bool) -> PlainAnswers:
        batch = torch.from_numpy(images.copy())  # what comes from the object store belongs to all, and is read-only
        return plain(self._loaded.ask(Question(batch, needs, measured)))

    def _load(self) -> None:
        brief = self._briefing
        self._loaded = LoadedVersion.load(brief.name, brief.source, brief.distance, None)
        if self._expected is None:
            self._expected = recorded(self._loaded.version, brief.images)
        problem = self._canary_problem()
        if problem:
            raise WrongOutputError(
                f"version {brief.name!r} {problem}; was its code changed since the guard was fitted?"
            )

    def _examine(self) -> str:
        """What is wrong; empty if nothing is."""
        changed = self._loaded.rotation.check(self._settings.upkeep_share * self._settings.check_every)
        return f"its weights changed: {', '.join(changed)}" if changed else self._canary_problem()

    def _canary_problem(self) -> str:
        assert self._expected is not None  # it is set when the version is loaded
        answers = self._loaded.ask(Question(self._briefing.images, measured=False))
        differs = mismatch(self._expected, logits_told(answers))
        return f"fails its canary inputs: {answers.health.problem or differs}" if differs else ""

    def _leave(self, reason: str) -> NoReturn:
        logger.error("a replica of version %r ends itself: %s; Ray starts another", self._briefing.name, reason)
        logging.shutdown()  # or the reason is lost with the process
        os._exit(_SIGNS_OFF)


def _without_gradients(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    with torch.no_grad():  # it holds for one thread only
        return work(*args, **kwargs)


def plain(answers: Answers) -> PlainAnswers:
    """Answers as they are sent."""
    message = answers_message(answers)
    return dict(message.facts), {name: tensor.detach().cpu().numpy() for name, tensor in message.tensors.items()}


def heard(sent: PlainAnswers, name: str, classes: int, asked: int) -> Answers:
    """The answers that were sent.

    Args:
        sent: by a replica.
        name: of the version.
        classes: K.
        asked: how many inputs it was asked.

    Raises:
        WrongOutputError: these are no answers to so many inputs.
    """
    facts, arrays = sent
    tensors = {key: torch.from_numpy(array.copy()) for key, array in arrays.items()}  # the store's are read-only
    return answers_of(Message("answers", facts, tensors), name, classes, asked)


def version_deployment(deployment: str, briefing: Briefing, settings: ReplicaSettings) -> Any:
    """A version as a part of a Ray Serve application.

    Args:
        deployment: its name in the application.
        briefing: what the replicas must know.
        settings: how many there are, and what they are allowed.
    """
    from ray import serve

    many: dict[str, Any] = {"num_replicas": settings.replicas}
    if settings.most_replicas is not None:
        scale = {"min_replicas": settings.replicas, "max_replicas": settings.most_replicas}
        many = {"autoscaling_config": {**scale, "target_ongoing_requests": 1}}
    if settings.replicas_per_node is not None:
        many["max_replicas_per_node"] = settings.replicas_per_node
    return serve.deployment(
        name=deployment,
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
        max_ongoing_requests=1,  # or questions would wait behind one that hangs
        health_check_period_s=settings.check_every,
        health_check_timeout_s=2 * settings.check_every + settings.hang_seconds,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=settings.hang_seconds,
        # Not Ray's 25 to 500 ms: a question waits at most for an answer, and another replica is soon free.
        request_router_config={"initial_backoff_s": 0.005, "backoff_multiplier": 2, "max_backoff_s": 0.05},
        **many,
    )(VersionReplica).bind(briefing, settings)
