"""How the guard stands, and what its operator may change."""

from collections.abc import Callable
from typing import Any, Final

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from starlette.requests import Request
from starlette.responses import Response

from deepfailguard.errors import ConfigurationError
from deepfailguard.runtime.status import Status
from deepfailguard.serving.json_responses import JsonResponse
from deepfailguard.serving.keys import check_admin_key
from deepfailguard.serving.refusing import RefusedError
from deepfailguard.serving.schemas import (
    HealthBody,
    QuarantineBody,
    StatusBody,
    SwapBody,
    SwapGateBody,
    VersionBody,
    responses,
)
from deepfailguard.serving.service import Service

__all__ = ["operating"]

_CHANGES: Final = responses(400, 401, 403, 404, 408, 409, 413, 422, 503)
_NAMED: Final = ("name", "state", "since", "reason")


def operating(router: APIRouter, service: Service) -> None:
    """Add the routes for operators and their programs."""
    _add_looking(router, service)
    _add_changing(router, service)


def _add_looking(router: APIRouter, service: Service) -> None:
    @router.get(
        "/health", response_model=HealthBody, responses={**responses(401), 503: {"model": HealthBody}}, tags=["Health"]
    )
    async def health() -> Response:
        """Whether enough versions serve, and which do not."""
        status, ready = await service.status(), await service.ready()
        told = {name: getattr(status, name) for name in ("degraded", "serving", "least_versions")}
        versions = [{name: getattr(version, name) for name in _NAMED} for version in status.versions]
        return JsonResponse({"ready": ready, **told, "versions": versions}, 200 if ready else 503)

    @router.get("/status", response_model=StatusBody, responses=responses(401), tags=["Health"])
    async def status() -> Response:
        """How the guard and its versions stand, in full."""
        return JsonResponse((await service.status()).as_dict())

    @router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}}, tags=["Health"])
    async def metrics() -> Response:
        """For Prometheus; while the guard is lost, the server's own metrics and that the guard is not ready."""
        text = service.metrics.text(await _status_if_any(service))
        return Response(text, headers={"content-type": CONTENT_TYPE_PLAIN_0_0_4})


async def _status_if_any(service: Service) -> Status | None:
    """How the guard stands; None while it is lost."""
    try:
        return await service.status()
    except RefusedError:
        return None


def _add_changing(router: APIRouter, service: Service) -> None:
    @router.post("/versions/swap", response_model=SwapGateBody, responses=_CHANGES, tags=["Versions"])
    async def swap(request: Request, body: SwapBody) -> Response:
        """Let a shadow take a version's place; 409 with the reasons if something speaks against it."""
        check_admin_key(request.headers, service.settings)
        await _check_names(service, body.leaving, body.entering)
        gate = await _change(service, service.runtime.swap, body.leaving, body.entering, body.force)
        return JsonResponse(gate.as_dict())

    @router.post("/versions/{name:path}/quarantine", response_model=VersionBody, responses=_CHANGES, tags=["Versions"])
    async def quarantine(request: Request, name: str, body: QuarantineBody) -> Response:
        """Let a version's answers not count until it is released."""
        check_admin_key(request.headers, service.settings)
        await _check_names(service, name)
        await _change(service, service.runtime.set_aside, name, body.reason)
        return await _version(service, name)

    @router.post("/versions/{name:path}/release", response_model=VersionBody, responses=_CHANGES, tags=["Versions"])
    async def release(request: Request, name: str) -> Response:
        """Let a version's answers count again, once it has passed what the guard tries it with."""
        check_admin_key(request.headers, service.settings)
        await _check_names(service, name)
        await _change(service, service.runtime.release, name)
        return await _version(service, name)


async def _check_names(service: Service, *names: str) -> None:
    known = [version.name for version in (await service.status()).versions]
    for name in names:
        if name not in known:
            raise RefusedError(404, f"there is no version {name[:80]!r}; there are {', '.join(known)}")


async def _change(service: Service, change: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return await service.in_thread(change, *arguments)
    except ConfigurationError as error:
        raise RefusedError(409, str(error)) from error
    finally:
        service.forget_status()


async def _version(service: Service, name: str) -> Response:
    version = next(each for each in (await service.status()).versions if each.name == name)
    return JsonResponse({key: getattr(version, key) for key in _NAMED})
