"""The Open Inference Protocol, version 2, over HTTP."""

import asyncio
from enum import Enum
from typing import Any, Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

import deepfailguard
from deepfailguard.serving.json_responses import JsonResponse
from deepfailguard.serving.keys import client_of
from deepfailguard.serving.plain_routes import add_route
from deepfailguard.serving.refusing import RefusedError
from deepfailguard.serving.schemas import (
    INFER_BODY,
    InferBody,
    LiveBody,
    ModelBody,
    ModelReadyBody,
    ReadyBody,
    ServerBody,
    responses,
)
from deepfailguard.serving.service import Service
from deepfailguard.serving.tensor_bodies import decode_request, encode_response, unpacked
from deepfailguard.serving.tensors import EXTENSIONS, MODEL_VERSION, input_tensors, output_tensors

__all__ = ["PLATFORM", "SERVER_NAME", "check_model", "open_inference"]

SERVER_NAME: Final = "deepfailguard"
PLATFORM: Final = "deepfailguard_pytorch"
_TAGS: Final[list[str | Enum]] = ["Open Inference Protocol v2"]
_PATHS: Final = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
_TYPES: Final = ("", "application/json", "application/octet-stream")
_INFER: Final[dict[str, Any]] = {
    "response_model": InferBody,
    "responses": {
        200: {
            "description": "Answers, as JSON; or as JSON and bytes, as the request wants each output.",
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        },
        **responses(400, 401, 404, 408, 413, 415, 429, 500, 503, 504),
    },
    "openapi_extra": INFER_BODY,
}


def check_model(service: Service, model: str, version: str = MODEL_VERSION) -> None:
    """Refuse a model, or a version of it, that there is not."""
    name = service.settings.model_name
    if model != name:
        raise RefusedError(404, f"there is no model {model[:80]!r}; the model of this server is {name!r}")
    if version != MODEL_VERSION:
        raise RefusedError(
            404, f"model {name!r} has no version {version[:80]!r}; ask for {MODEL_VERSION!r}, or for none"
        )


def open_inference(router: APIRouter, service: Service) -> None:
    """Add the protocol's routes; inference comes first, as routes are looked through in their order."""

    async def infer(request: Request) -> Response:
        """Answers to images."""
        return await _infer(service, _checked(service, request), request)

    for path in _PATHS:
        add_route(router, "POST", f"{path}/infer", infer, _choices(service), tags=_TAGS, **_INFER)
    _add_server_routes(router, service)
    _add_model_routes(router, service)


def _add_server_routes(router: APIRouter, service: Service) -> None:
    async def server_metadata(_: Request) -> Response:
        """Name, version and extensions."""
        told = {"name": SERVER_NAME, "version": deepfailguard.__version__, "extensions": EXTENSIONS}
        return JsonResponse(told)

    async def server_live(_: Request) -> Response:
        """Whether the server runs."""
        return JsonResponse({"live": True})

    async def server_ready(_: Request) -> Response:
        """Whether enough versions serve, and the server is not shutting down."""
        ready = await service.ready()
        return JsonResponse({"ready": ready}, 200 if ready else 503)

    add_route(router, "GET", "/v2", server_metadata, tags=_TAGS, response_model=ServerBody, responses=responses(401))
    add_route(router, "GET", "/v2/health/live", server_live, tags=_TAGS, response_model=LiveBody)
    unready: dict[int | str, Any] = {503: {"model": ReadyBody}}
    add_route(router, "GET", "/v2/health/ready", server_ready, tags=_TAGS, response_model=ReadyBody, responses=unready)


def _add_model_routes(router: APIRouter, service: Service) -> None:
    async def model_metadata(request: Request) -> Response:
        """The guard's input and outputs."""
        name, card = _checked(service, request), service.runtime.card
        told = {"name": name, "versions": [MODEL_VERSION], "platform": PLATFORM}
        return JsonResponse(told | {"inputs": input_tensors(card), "outputs": output_tensors(card)})

    async def model_ready(request: Request) -> Response:
        """Whether the guard takes requests."""
        name, ready = _checked(service, request), await service.ready()
        return JsonResponse({"name": name, "ready": ready}, 200 if ready else 503)

    unknown, only = responses(401, 404), _choices(service)
    unready = {**unknown, 503: {"model": ModelReadyBody}}
    for path in _PATHS:
        add_route(router, "GET", path, model_metadata, only, tags=_TAGS, response_model=ModelBody, responses=unknown)
        ready = f"{path}/ready"
        add_route(router, "GET", ready, model_ready, only, tags=_TAGS, response_model=ModelReadyBody, responses=unready)


def _choices(service: Service) -> dict[str, str]:
    return {"model": service.settings.model_name, "version": MODEL_VERSION}


def _checked(service: Service, request: Request) -> str:
    model: str = request.path_params["model"]
    check_model(service, model, request.path_params.get("version", MODEL_VERSION))
    return model


async def _infer(service: Service, model: str, request: Request) -> Response:
    headers = request.headers
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in _TYPES:
        raise RefusedError(
            415, f"expected {_TYPES[1]} or {_TYPES[2]}, got {kind[:80]!r}; set Content-Type to one of them"
        )
    body, length = await request.body(), headers.get("inference-header-content-length")
    body = unpacked(body, headers.get("content-encoding", "").lower(), length, service.settings.largest_body)
    asked = decode_request(body, length, service.runtime.card)
    del body
    client = client_of(request.client.host if request.client else "", headers, service.settings)
    gone = asyncio.ensure_future(request.receive())
    try:
        answer = await service.batcher.infer(asked.images, client, asked.seconds, gone)
    finally:
        gone.cancel()
    content, header_length = encode_response(answer, asked, model)
    if header_length is None:
        return Response(content, media_type="application/json")
    told = {"Inference-Header-Content-Length": str(header_length)}
    return Response(content, headers=told, media_type="application/octet-stream")
