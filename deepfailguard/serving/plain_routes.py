"""Routes that are documented like others, and called without the framework's preparations."""

from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

__all__ = ["Endpoint", "add_route"]

Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]


class _PlainRoute(APIRoute):
    """Gives the request to its endpoint as it came: looking for parameters and bodies costs more than the endpoint."""

    def get_route_handler(self) -> Endpoint:
        """The endpoint itself."""
        endpoint: Endpoint = self.endpoint
        return endpoint


def add_route(
    router: APIRouter, method: str, path: str, endpoint: Endpoint, choices: Mapping[str, str] | None = None, **told: Any
) -> None:
    """Add a route.

    Args:
        router: to which it is added.
        method: of HTTP.
        path: its pattern, whose parameters are all among the choices.
        endpoint: from the request to the response.
        choices: the only value of each parameter of the path.
        told: what FastAPI's page shall tell of it.
    """
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "enum": [only]}}
        for name, only in (choices or {}).items()
        if f"{{{name}}}" in path
    ]
    extra = told.pop("openapi_extra", {}) | ({"parameters": parameters} if parameters else {})
    router.add_api_route(
        path, endpoint, methods=[method], route_class_override=_PlainRoute, openapi_extra=extra, **told
    )
