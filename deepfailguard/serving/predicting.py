"""The plain way in: a picture file."""

import asyncio
import math
import time
from dataclasses import replace
from typing import Any, Final

from fastapi import APIRouter
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import Response

from deepfailguard.guard.verdict import Verdict
from deepfailguard.serving.answers import Answer
from deepfailguard.serving.json_responses import JsonResponse
from deepfailguard.serving.keys import client_of
from deepfailguard.serving.pictures import Picture
from deepfailguard.serving.plain_routes import add_route
from deepfailguard.serving.refusing import RefusedError
from deepfailguard.serving.schemas import PICTURE_BODY, PredictionBody, responses
from deepfailguard.serving.service import Service

__all__ = ["predicting"]

_FORM: Final = "multipart/form-data"
_ROWS: Final = (
    "labels",
    "failure_probability",
    "abstained",
    "weights",
    "probabilities",
    "version_labels",
    "version_failure_probability",
    "distance",
    "found",
)


def predicting(router: APIRouter, service: Service) -> None:
    """Add the route for pictures."""

    async def predict(request: Request) -> Response:
        """The verdict on a picture, and why."""
        return JsonResponse(await _predict(service, request))

    add_route(
        router,
        "POST",
        "/predict",
        predict,
        tags=["Pictures"],
        response_model=PredictionBody,
        responses=responses(400, 401, 408, 413, 415, 422, 429, 500, 503, 504),
        openapi_extra=PICTURE_BODY,
    )


async def _predict(service: Service, request: Request) -> dict[str, Any]:
    content = await _content(request)
    began = time.perf_counter()
    picture = await _decoded(service, content)
    client = client_of(request.client.host if request.client else "", request.headers, service.settings)
    left = max(0.0, service.settings.deadline - (time.perf_counter() - began))
    gone = asyncio.ensure_future(request.receive())
    try:
        answer = await service.batcher.infer(picture.image, client, left, gone)
    finally:
        gone.cancel()
    return {**_told(answer), "resized_from": picture.resized_from, "seconds": time.perf_counter() - began}


async def _decoded(service: Service, content: bytes) -> Picture:
    """The picture, as long as there is time for an answer to it."""
    seconds = service.settings.deadline
    try:
        async with asyncio.timeout(seconds):
            return await service.decoder.decode(content, service.runtime.card)
    except TimeoutError:
        raise RefusedError(
            504, f"the picture was not decoded within the deadline of {seconds:g} s; send a smaller one", 1
        ) from None


async def _content(request: Request) -> bytes:
    """The picture's bytes, from a form or alone."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind.startswith("image/"):
        content = await request.body()
    elif kind == _FORM:
        content = await _of_form(request)
    else:
        raise RefusedError(
            415,
            f"expected an image, or {_FORM} with the field 'file', got {kind[:80]!r}; with curl: -F file=@picture.png",
        )
    if not content:
        raise RefusedError(400, "expected a picture, got nothing; send its bytes")
    return content


async def _of_form(request: Request) -> bytes:
    async with request.form(max_files=1, max_fields=8) as form:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise RefusedError(400, f"expected a file in the field 'file', got the fields {sorted(form)[:8]}")
        return await file.read()


def _told(answer: Answer) -> dict[str, Any]:
    verdict = _row(answer.batch.verdict, answer.start)
    label = int(verdict.labels[0])
    probabilities = verdict.probabilities[0].tolist()
    return {
        "label": label,
        "class": verdict.class_name(label),
        "abstained": bool(verdict.abstained[0]),
        "failure_probability": float(verdict.failure_probability[0]),
        "degraded": verdict.degraded,
        "ground": verdict.ground,
        "explanation": verdict.explain(0),
        "probabilities": dict(zip(verdict.classes, probabilities, strict=True)),
        "versions": [_version(verdict, column) for column in range(len(verdict.health))],
    }


def _row(verdict: Verdict, position: int) -> Verdict:
    """The verdict on one image of the batch."""
    rows = {name: getattr(verdict, name)[position : position + 1] for name in _ROWS}
    problems = {0: verdict.problems[position]} if position in verdict.problems else {}
    return replace(verdict, problems=problems, **rows)


def _version(verdict: Verdict, column: int) -> dict[str, Any]:
    health, label = verdict.health[column], int(verdict.version_labels[0, column])
    distance, found = float(verdict.distance[0, column]), bool(verdict.found[0, column])
    return {
        "name": health.name,
        "state": health.state,
        "label": label,
        "class": verdict.class_name(label),
        "failure_probability": float(verdict.version_failure_probability[0, column]),
        "weight": float(verdict.weights[0, column]),
        "distance": distance if found and math.isfinite(distance) else None,
        "found": found,
        "problem": health.problem,
    }
