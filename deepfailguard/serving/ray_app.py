"""A guard on Ray Serve: the same application, with each version as a deployment of its own, on one machine or many."""

import logging
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from deepfailguard.errors import ConfigurationError
from deepfailguard.guard.saved import GuardCard, SavedGuard, load_guard
from deepfailguard.pipeline.launching.ray_cluster import cluster
from deepfailguard.runtime.assembling import sources_of
from deepfailguard.runtime.base import Source
from deepfailguard.runtime.housing import Housing
from deepfailguard.runtime.roster import canary_images
from deepfailguard.runtime.runners.ray_replica import Briefing, ReplicaSettings, version_deployment
from deepfailguard.runtime.runners.ray_serve import RayLink, RayServeRunner
from deepfailguard.runtime.runtime import GuardRuntime
from deepfailguard.runtime.settings import Settings
from deepfailguard.serving.settings import Listening, ServerSettings
from deepfailguard.versions.pool import TRUSTED_PACKAGES

__all__ = ["RayGuard", "deployed", "guard_application", "runtime_on_ray", "serve_on_ray"]

_MANY: Final = 100_000  # requests at a time: the application has limits of its own, and says why it refuses
_INGRESS: Final = "guard"
_LOGGING: Final = {"enable_access_log": False}  # a line for each question to each version

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RayGuard:
    """What is served on Ray. All machines must find the guard's folder, and the code of its versions, under one path.

    Attributes:
        folder: of the guard.
        models: modules of the versions' architectures, in order or by name, for versions that deepfailguard did not
            train.
        trusted: packages whose classes the folder may name.
        public_key: file of the key by which the guard must be signed; it need not be if None.
        device: where versions run, "cpu" or "cuda"; "auto" for what `replicas.gpus` says.
        state: folder of the runtime's log and state, see `GuardRuntime`.
        runtime: what the runtime is allowed. Its deadline holds for each batch, however long a request may still wait:
            at less than half of the server's, requests that wait behind a version that hangs are answered in time.
        server: what clients are allowed.
        replicas: how each version is run.
        guard_cpus: that Ray keeps for the guard itself.
        guard_resources: Ray resources that say where the guard itself runs; ``{"node:__internal_head__": 0.001}``
            for the machine whose loss ends the cluster anyway.
        application: its name on the cluster.
    """

    folder: Path
    models: Sequence[nn.Module] | Mapping[str, nn.Module] | None = field(default=None, repr=False)
    trusted: Sequence[str] = TRUSTED_PACKAGES
    public_key: Path | None = None
    device: torch.device | str = "cpu"
    state: Path | None = None
    runtime: Settings = field(default_factory=lambda: Settings(deadline=0.4))
    server: ServerSettings = field(default_factory=ServerSettings)
    replicas: ReplicaSettings = field(default_factory=ReplicaSettings)
    guard_cpus: float = 1.0
    guard_resources: Mapping[str, float] = field(default_factory=dict)
    application: str = "deepfailguard"

    def __post_init__(self) -> None:
        if "cuda" in str(self.device) and not self.replicas.gpus:
            raise ConfigurationError(
                f"versions cannot run on {self.device} without GPUs: Ray hides them; set replicas.gpus, to 0.5 say"
            )

    @property
    def absolute(self) -> "RayGuard":
        """The same with paths that hold in any folder: Ray's processes run in others."""
        places = {name: getattr(self, name) for name in ("folder", "state", "public_key")}
        return replace(self, **{name: path.resolve() for name, path in places.items() if path is not None})

    def load(self) -> tuple[SavedGuard, list[Source]]:
        """The guard without its versions, verified, and where their weights are."""
        saved = load_guard(self.folder, self.trusted, self.public_key)
        device = self.device
        if str(device) == "auto":
            device = "cuda" if self.replicas.gpus else "cpu"
        return saved, sources_of(self.folder, saved.card, self.trusted, self.models, device)

    def cpus(self, card: GuardCard) -> int:
        """How many cores Ray must keep for all of it."""
        replicas = self.replicas.replicas * len(card.names)
        return int(-(-(self.guard_cpus + replicas * self.replicas.cpus) // 1))


def serve_on_ray(guard: RayGuard, listening: Listening, address: str | None = None) -> None:
    """Serve until the process is told to stop (SIGINT, SIGTERM); what was accepted is answered before it ends.

    Args:
        guard: what is served.
        listening: where, on each machine that has replicas; there is no gRPC on Ray.
        address: of a running cluster; None starts one on this machine for as long as it serves.

    Raises:
        ConfigurationError: Ray is missing or does not answer, or the guard cannot be deployed.
    """
    saved, _ = guard.load()  # what is wrong with the folder is told before anything is started
    if listening.grpc_port is not None:
        logger.info("there is no gRPC on Ray: only HTTP is served")
    with cluster(address, max(os.cpu_count() or 1, guard.cpus(saved.card))), deployed(guard, listening):
        logger.info("%s serves on http://%s:%d", guard.application, listening.host, listening.port)
        _wait_for_the_end()


@contextmanager
def deployed(guard: RayGuard, listening: Listening) -> Iterator[None]:
    """The guard, deployed on the cluster to which this process is connected.

    Raises:
        ConfigurationError: it cannot be deployed.
    """
    if not listening.port:
        raise ConfigurationError("on Ray a port must be given: every machine listens on the same one")
    serve = _import_serve()
    with _plainly(f"Ray Serve cannot listen on {listening.host}:{listening.port}"):
        serve.start(http_options=_http(listening), logging_config=_LOGGING)
    try:
        with _plainly(f"the guard in {guard.folder} cannot be deployed on Ray"):
            serve.run(guard_application(guard), name=guard.application, route_prefix="/", logging_config=_LOGGING)
        yield
    finally:
        serve.delete(guard.application)


def guard_application(guard: RayGuard) -> Any:
    """The guard as a Ray Serve application: for a cluster's own way to deploy.

    One replica holds the guard itself: its state, and what an operator sets aside, is in one place. Ray starts it anew
    when it is lost; requests that it had accepted then fail.

    Raises:
        DeepfailguardError: the folder holds no sound guard.
    """
    serve, guard = _import_serve(), guard.absolute
    saved, sources = guard.load()
    _try_to_load(guard)
    images, canary = canary_images(saved), saved.canary
    versions = []
    for column, (name, source) in enumerate(zip(saved.card.names, sources, strict=True)):
        expected = None if canary is None else canary.logits[:, column]
        briefing = Briefing(name, source, saved.distance, images, expected)
        versions.append(version_deployment(_deployment(column), briefing, guard.replicas))
    return serve.deployment(
        name=_INGRESS,
        num_replicas=1,
        ray_actor_options={"num_cpus": guard.guard_cpus, "resources": dict(guard.guard_resources)},
        max_ongoing_requests=_MANY,
        health_check_period_s=guard.replicas.check_every,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=guard.server.drain_seconds,
    )(serve.ingress(_app_of(guard))()).bind(*versions)


def runtime_on_ray(guard: RayGuard) -> GuardRuntime:
    """A runtime whose versions are the deployments of the guard's application; waits until they are there."""
    saved, sources = guard.load()
    housing = _housing(saved.card, guard.application, RayLink())
    return GuardRuntime(saved, sources=sources, isolation=housing, settings=guard.runtime, state=guard.state)


def _app_of(guard: RayGuard) -> Callable[[], Any]:
    """A function that makes the application where it shall run: a runtime cannot travel."""

    def build() -> Any:
        from deepfailguard.serving.app import create_app

        runtime = runtime_on_ray(guard)
        app = create_app(runtime, guard.server)
        app.router.lifespan_context = _closing(runtime, app.router.lifespan_context)
        return app

    return build


def _closing(runtime: GuardRuntime, lifespan: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The application's life, after which the runtime is closed: nobody else holds it."""

    @asynccontextmanager
    async def whole(app: Any) -> AsyncIterator[Any]:
        try:
            async with lifespan(app) as state:
                yield state
        finally:
            runtime.close()

    return whole


def _housing(card: GuardCard, application: str, link: RayLink) -> Housing:
    serve = _import_serve()
    deployments = {name: _deployment(column) for column, name in enumerate(card.names)}

    def house(name: str, _: Source, __: Any, ___: Path | None) -> RayServeRunner:
        if name not in deployments:
            raise ConfigurationError(
                f"version {name!r} has no deployment on Ray, and none is added while it serves; fit a guard with it, "
                "save it and deploy that"
            )
        handle = serve.get_deployment_handle(deployments[name], application)
        return RayServeRunner(name, handle, len(card.classes), link)

    return house


def _try_to_load(guard: RayGuard) -> None:
    """Load each version here, on the CPU: what is wrong is told at once, and not by replicas that fail in turn."""
    _, sources = replace(guard, device="cpu").load()
    for source in sources:
        source.load()


def _deployment(column: int) -> str:
    return f"version-{column}"  # a version's name may hold anything


@contextmanager
def _plainly(what: str) -> Iterator[None]:
    """Tell Ray's errors in a line: they carry the traceback of another process."""
    try:
        yield
    except RuntimeError as error:
        raise ConfigurationError(f"{what}: {str(error).strip().splitlines()[-1]}") from error


def _http(listening: Listening) -> dict[str, Any]:
    options: dict[str, Any] = {"host": listening.host, "port": listening.port}
    if listening.certificate is not None:
        options |= {"ssl_certfile": str(listening.certificate), "ssl_keyfile": str(listening.private_key)}
    return options


def _import_serve() -> Any:
    try:
        from ray import serve
    except ImportError as error:
        raise ConfigurationError(
            f"serving on Ray needs Ray Serve, which is not installed ({error}): pip install 'deepfailguard[ray]'"
        ) from error
    return serve


def _wait_for_the_end() -> None:
    told = threading.Event()
    before = {number: signal.signal(number, lambda *_: told.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        told.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
