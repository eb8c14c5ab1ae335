"""What passes the door, what does not, and what a refused client is told. Without sockets: the ASGI protocol itself."""

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deepfailguard.serving import limits
from deepfailguard.serving.keys import client_of
from deepfailguard.serving.limits import Door, Limits
from deepfailguard.serving.refusing import RefusedError
from deepfailguard.serving.settings import ServerSettings

SETTINGS = ServerSettings(largest_body=1000, bodies=3000)


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Tells how long the body was."""
    body = await Request(scope, receive).body()
    await PlainTextResponse(str(len(body)))(scope, receive, send)


class Client:
    """Sends a request in parts and keeps what it is sent."""

    def __init__(self, parts: Iterator[bytes] | list[bytes], **headers: str) -> None:
        self.parts = iter(parts)
        self.headers = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        self.next: bytes | None = next(self.parts, None)
        self.taken = 0
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        if self.next is None:
            return {"type": "http.disconnect"} if self.taken else {"type": "http.request", "body": b""}
        part, self.next = self.next, next(self.parts, None)
        self.taken += len(part)
        return {"type": "http.request", "body": part, "more_body": self.next is not None}

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def told(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.sent[1:])


class Seen(list[tuple[str, int]]):
    def __call__(self, route: str, status: int, seconds: float) -> None:
        self.append((route, status))


def visit(
    client: Client, app: ASGIApp = echo, settings: ServerSettings = SETTINGS, door: Door | None = None, path: str = "/x"
) -> tuple[Seen, Door]:
    seen, door = Seen(), door or Door()
    scope = {"type": "http", "method": "POST", "path": path, "headers": client.headers}

    async def work() -> None:
        async with asyncio.timeout(60):
            await Limits(app, settings, door, seen)(scope, client.receive, client.send)

    asyncio.run(work())
    assert client.sent[-1].get("more_body", False) is False
    return seen, door


def refusal(client: Client) -> str:
    error: str = json.loads(client.body)["error"]
    return error


def test_what_is_allowed_passes() -> None:
    client = Client([b"abc", b"de"], content_length="5")
    seen, door = visit(client)
    assert (client.status, client.body) == (200, b"5")
    assert "connection" not in client.told
    assert seen == [("unknown", 200)]
    assert (door.requests, door.held) == (0, 0)


def test_a_body_that_says_that_it_is_too_large_is_refused_unread() -> None:
    client = Client([bytes(100)] * 20, content_length="2000")

    async def never(*_: Any) -> None:
        pytest.fail("it was let in")

    visit(client, never)
    assert client.status == 413
    assert "at most 1000 bytes, got one of 2000 bytes" in refusal(client)
    assert client.told["connection"] == "close"


def test_a_body_that_says_nothing_is_counted() -> None:
    client = Client([bytes(100)] * 20, transfer_encoding="chunked")
    _, door = visit(client)
    assert client.status == 413
    assert client.told["connection"] == "close"
    assert door.held == 0


def test_what_a_refused_client_still_sends_is_thrown_away_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the connection would be reset before the client had read why."""
    client = Client([bytes(100)] * 50, content_length="5000")
    visit(client)
    assert client.taken == 5000
    assert [message["type"] for message in client.sent] == ["http.response.start"] + ["http.response.body"] * 2
    monkeypatch.setattr(limits, "_LINGERING", 0.05)

    def endless() -> Iterator[bytes]:
        while True:
            yield bytes(1000)

    class Slow(Client):
        async def receive(self) -> Message:
            await asyncio.sleep(0.001)
            return await super().receive()

    slow = Slow(endless(), content_length="5000")
    visit(slow)
    assert slow.status == 413


@pytest.mark.parametrize("length", ["x", "-1", "1e3", ""])
def test_a_length_that_is_none_is_refused(length: str) -> None:
    client = Client([b"abc"], content_length=length)
    visit(client)
    assert client.status == 400
    assert "Content-Length" in refusal(client)


def test_a_body_that_takes_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_LINGERING", 0.01)

    class Stalling(Client):
        async def receive(self) -> Message:
            if self.taken:
                await asyncio.Event().wait()
            return await super().receive()

    client = Stalling([b"a", b"b"], content_length="2")
    visit(client, settings=ServerSettings(body_seconds=0.05))
    assert client.status == 408
    assert "within 0.05 s" in refusal(client)


def test_the_bodies_of_all_requests_together_are_bounded() -> None:
    client, door = Client([bytes(100)] * 6, transfer_encoding="chunked"), Door(held=2500)
    visit(client, door=door)
    assert client.status == 503
    assert client.told["retry-after"] == "1"
    assert door.held == 2500


def test_a_refusal_inside_is_told_with_its_headers() -> None:
    async def refuse(*_: Any) -> None:
        raise RefusedError(429, "too much", 7)

    client = Client([])
    seen, _ = visit(client, refuse)
    assert client.status == 429
    assert client.told["retry-after"] == "7"
    assert refusal(client) == "too much"
    assert seen == [("unknown", 429)]


def test_an_error_inside_is_an_answer_with_a_number_that_stands_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def break_down(*_: Any) -> None:
        raise ZeroDivisionError("secret")

    client = Client([])
    visit(client, break_down)
    assert client.status == 500
    assert "secret" not in refusal(client)
    number = refusal(client).rpartition(" ")[2]
    assert any(number in record.getMessage() and record.exc_info for record in caplog.records)


def test_an_error_after_the_answer_began_does_not_begin_another(caplog: pytest.LogCaptureFixture) -> None:
    async def half(_: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ha", "more_body": False})
        raise ZeroDivisionError

    client = Client([])
    visit(client, half)
    assert [message["type"] for message in client.sent] == ["http.response.start", "http.response.body"]
    assert "failed" in caplog.text


def test_a_client_that_went_away_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    class Leaving(Client):
        async def receive(self) -> Message:
            return {"type": "http.disconnect"}

    client, seen = Leaving([b"x", b"y"], content_length="2"), Seen()
    scope = {"type": "http", "method": "POST", "path": "/x", "headers": client.headers}
    asyncio.run(Limits(echo, SETTINGS, Door(), seen)(scope, client.receive, client.send))
    assert client.sent == []
    assert seen == [("unknown", 499)]
    assert caplog.records == []


def test_nobody_is_let_in_while_the_server_stops() -> None:
    client = Client([])
    visit(client, door=Door(closing=True))
    assert client.status == 503
    assert client.told["connection"] == "close"
    assert client.told["retry-after"] == "1"
    assert "shutting down" in refusal(client)
    live = Client([])
    visit(live, door=Door(closing=True), path="/v2/health/live")
    assert live.status == 200


def test_who_is_inside_when_the_server_stops_is_answered_and_sent_away() -> None:
    door = Door()

    async def close_meanwhile(scope: Scope, receive: Receive, send: Send) -> None:
        door.closing = True
        await echo(scope, receive, send)

    client = Client([b"abc"], content_length="3")
    visit(client, close_meanwhile, door=door)
    assert (client.status, client.body) == (200, b"3")
    assert client.told["connection"] == "close"


KEY, ADMIN = "a-key-for-clients", "a-key-for-operators"
LOCKED = ServerSettings(key=KEY, admin_key=ADMIN)


def with_key(**headers: str) -> Callable[[str], int]:
    def ask(path: str) -> int:
        client = Client([], **headers)
        visit(client, settings=LOCKED, path=path)
        if client.status == 401:
            assert client.told["www-authenticate"] == "Bearer"
            assert "Authorization: Bearer KEY" in refusal(client)
        return client.status

    return ask


@pytest.mark.parametrize(
    "path", ["/v2", "/v2/models/guard/infer", "/predict", "/status", "/health", "/versions/swap", "/no"]
)
def test_keys(path: str) -> None:
    assert with_key()(path) == 401
    assert with_key(x_api_key="not-the-key-at-all")(path) == 401
    assert with_key(authorization=f"Basic {KEY}")(path) == 401
    assert with_key(authorization=f"Bearer {KEY[:-1]}")(path) == 401
    assert with_key(x_api_key="ключ")(path) == 401
    for key in (KEY, ADMIN):
        assert with_key(x_api_key=key)(path) == 200
        assert with_key(authorization=f"bearer {key}")(path) == 200


@pytest.mark.parametrize("path", ["/", "/static/a.js", "/v2/health/live", "/v2/health/ready", "/metrics", "/docs"])
def test_probes_and_pages_need_no_key(path: str) -> None:
    assert with_key()(path) == 200


def test_a_key_tells_clients_apart_only_where_it_was_checked() -> None:
    """Else a client would evade what each may ask at a time by making up keys."""
    one, other = {"x-api-key": KEY}, {"authorization": f"Bearer {ADMIN}"}
    assert client_of("::1", one, SETTINGS) == client_of("::1", other, SETTINGS) == client_of("::1", {}, SETTINGS)
    assert client_of("::1", one, SETTINGS) != client_of("::2", one, SETTINGS)
    only_admin = ServerSettings(admin_key=ADMIN)
    assert client_of("::1", one, only_admin) == client_of("::1", other, only_admin)
    assert client_of("::1", one, LOCKED) != client_of("::1", other, LOCKED)
