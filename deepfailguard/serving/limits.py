"""What every request over HTTP passes: keys, sizes, times, and an answer whatever happens."""

import asyncio
import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import orjson
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deepfailguard.serving.keys import check_key, is_open
from deepfailguard.serving.refusing import CLIENT_GONE, SHUTTING_DOWN, RefusedError
from deepfailguard.serving.settings import ServerSettings

__all__ = ["Door", "Limits", "RequestObserver"]

logger = logging.getLogger(__name__)

RequestObserver = Callable[[str, int, float], None]
"""Is told of each request's route, status and seconds."""

_LINGERING: Final = 2.0


@dataclass(slots=True)
class Door:
    """Who is inside.

    Attributes:
        requests: that were accepted and not yet answered.
        held: bytes of their bodies.
        closing: whether nobody is let in any more.
    """

    requests: int = 0
    held: int = 0
    closing: bool = False


class Limits:
    """ASGI middleware that lets in what the settings allow, and answers with JSON whatever goes wrong inside.

    A body is bounded by what it says of its size and by what really comes; in time, too. What is refused before its
    body has come gets its answer at once, and the connection is closed.

    Args:
        app: what is inside.
        settings: what is allowed.
        door: who is inside; shared with whoever closes it.
        observe: is told of each request.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings, door: Door, observe: RequestObserver) -> None:
        self.app = app
        self.settings = settings
        self.door = door
        self.observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        visit = _Visit(Headers(scope=scope), receive, send, self.settings, self.door)
        refused_at_once = self.door.closing and scope["path"] != "/v2/health/live"
        self.door.requests += 1
        try:
            await self._answer(scope, visit, refused_at_once)
        finally:
            self.door.requests -= 1
            self.door.held -= visit.held
            self.observe(_route_of(scope), visit.status, time.perf_counter() - began)

    async def _answer(self, scope: Scope, visit: "_Visit", refused_at_once: bool) -> None:
        try:
            if refused_at_once:
                raise RefusedError(503, SHUTTING_DOWN, 1)
            if not is_open(scope["path"]):
                check_key(visit.headers, self.settings)
            visit.check_announced()
            await self.app(scope, visit.receive, visit.send)
        except RefusedError as refusal:
            await visit.refuse(refusal)
        except ClientDisconnect:
            visit.status = CLIENT_GONE
        except asyncio.CancelledError:
            if not self.door.closing:
                raise
            await visit.refuse(RefusedError(503, SHUTTING_DOWN, 1))  # its time to be answered is over
        except Exception:
            number = uuid.uuid4().hex[:12]
            logger.exception("request %s failed: %s %s", number, scope["method"], scope["path"])
            await visit.refuse(RefusedError(500, f"the server failed; its log tells why, look for {number}"))


def _route_of(scope: Scope) -> str:
    """The route's pattern, not the path: clients must not make up label values."""
    return getattr(scope.get("route"), "path", "unknown") or "unknown"


class _Visit:
    """One request: its body is measured as it comes, and what is left of it when it is answered."""

    def __init__(self, headers: Headers, receive: Receive, send: Send, settings: ServerSettings, door: Door) -> None:
        self.headers = headers
        self.settings = settings
        self.door = door
        self.held = 0
        self.status = CLIENT_GONE
        self._receive = receive
        self._send = send
        self._until = asyncio.get_running_loop().time() + settings.body_seconds
        self._complete = headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers
        self._unread = False
        self._started = False

    def check_announced(self) -> None:
        """Refuse a body that says that it is too large, before any of it is read."""
        length = self.headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()):
            raise RefusedError(400, f"expected Content-Length to be a whole number of bytes, got {length[:20]!r}")
        if int(length[:20]) > self.settings.largest_body:
            raise self._too_large(f"one of {length[:20]} bytes")

    async def receive(self) -> Message:
        """The next part of the body; after it, whether the client went away."""
        if self._complete:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._until):
                message = await self._receive()
        except TimeoutError:
            raise RefusedError(
                408, f"the body did not arrive within {self.settings.body_seconds:g} s; send less, or faster"
            ) from None
        self._complete = not message.get("more_body", False)
        self._hold(len(message.get("body", b"")))
        return message

    def _hold(self, count: int) -> None:
        self.held += count
        self.door.held += count
        if self.held > self.settings.largest_body:
            raise self._too_large("a larger one")
        if self.door.held > self.settings.bodies:
            raise RefusedError(503, "the server holds as many bodies as it may; ask again", 1)

    def _too_large(self, came: str) -> RefusedError:
        return RefusedError(
            413, f"expected a body of at most {self.settings.largest_body} bytes, got {came}; send less"
        )

    async def send(self, message: Message) -> None:
        """Pass a part of the response on; see that a client that still sends can read it."""
        if message["type"] == "http.response.start":
            self._started = True
            self.status = message["status"]
            self._unread = not self._complete
            if self._unread or self.door.closing:
                message["headers"] = [*message.get("headers", []), (b"connection", b"close")]
            await self._send(message)
        elif self._unread and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._discard()
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
        else:
            await self._send(message)

    async def _discard(self) -> None:
        """Throw away what the client still sends: a connection that is closed on it would lose our answer."""
        try:
            async with asyncio.timeout(_LINGERING):
                while not self._complete:
                    self._complete = not (await self._receive()).get("more_body", False)
        except TimeoutError:
            pass

    async def refuse(self, refusal: RefusedError) -> None:
        """Say why there is no answer, if none has begun."""
        if self._started or refusal.status == CLIENT_GONE:
            return
        body = orjson.dumps({"error": refusal.text})
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        headers += [(name.encode(), value.encode()) for name, value in headers_of(refusal).items()]
        await self.send({"type": "http.response.start", "status": refusal.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})


def headers_of(refusal: RefusedError) -> dict[str, str]:
    """Headers that belong to a refusal, beside those of its body."""
    headers: dict[str, Any] = {} if refusal.retry_after is None else {"retry-after": str(refusal.retry_after)}
    return headers | ({"www-authenticate": "Bearer"} if refusal.status == 401 else {})
