"""The server as an ASGI application."""

from pathlib import Path
from typing import Final

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

import deepfailguard
from deepfailguard.serving.base import Runtime
from deepfailguard.serving.json_responses import JsonResponse
from deepfailguard.serving.limits import Limits
from deepfailguard.serving.open_inference import open_inference
from deepfailguard.serving.operating import operating
from deepfailguard.serving.predicting import predicting
from deepfailguard.serving.refusing import RefusedError
from deepfailguard.serving.service import Service
from deepfailguard.serving.settings import ServerSettings

__all__ = ["create_app", "service_of"]

DASHBOARD: Final = Path(__file__).parent / "dashboard"
_DESCRIPTION: Final = (
    "Several versions of a classifier that answer as one. Ask by the Open Inference Protocol (`/v2`), or with a "
    'picture (`/predict`). Errors are JSON: `{"error": text}`.'
)
_PAGE_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_HINTS: Final = {404: "there is no such page; /docs shows all", 405: "this page does not take that method"}


def create_app(runtime: Runtime, settings: ServerSettings | None = None) -> FastAPI:
    """A guard as an application for any ASGI server, which may start and stop it again and again.

    Args:
        runtime: the guard; it stays open when the application ends.
        settings: what clients are allowed.
    """
    service = Service(runtime, settings or ServerSettings())

    app = FastAPIOffline(  # where there is no internet, its page of all routes works too
        static_url="/static/docs",
        title="deepfailguard",
        version=deepfailguard.__version__,
        description=_DESCRIPTION,
        redoc_url=None,
        separate_input_output_schemas=False,
    )
    app.state.service = service
    app.add_middleware(Limits, settings=service.settings, door=service.door, observe=service.metrics.request)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    for add in (open_inference, predicting, operating):
        add(app.router, service)
    _add_dashboard(app)
    return app


def service_of(app: FastAPI) -> Service:
    """What the application's routes share."""
    service: Service = app.state.service
    return service


def _add_dashboard(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def dashboard() -> Response:
        return FileResponse(DASHBOARD / "index.html", headers=_PAGE_HEADERS)

    app.mount("/static", _Static(directory=DASHBOARD / "static", check_dir=False), name="static")


class _Static(StaticFiles):
    """The dashboard's files; a browser asks whether they changed before it uses those that it has."""

    def file_response(self, *arguments: object, **options: object) -> Response:
        response: Response = super().file_response(*arguments, **options)  # type: ignore[arg-type]
        response.headers.update({"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"})
        return response


async def _http_error(_: Request, error: Exception) -> Response:
    """What the framework refuses: unknown pages, wrong methods, forms that cannot be read."""
    if isinstance(error.__cause__, RefusedError):  # it was on its way out while the framework read the body
        raise error.__cause__
    status = getattr(error, "status_code", 500)
    detail = str(getattr(error, "detail", ""))
    return JsonResponse({"error": _HINTS.get(status, detail)}, status, getattr(error, "headers", None))


async def _validation_error(_: Request, error: Exception) -> Response:
    """A body that is not what its page expects."""
    problems = error.errors() if isinstance(error, RequestValidationError) else []
    told = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in problems[:5])
    return JsonResponse({"error": f"the request is not what was expected: {told}"}, 422)
