"""A client that costs little: requests are bytes that were built before, and answers are looked at no more than needed.

It imports nothing but Python's own library and uvloop where that is installed, so that it starts at once in a process
of its own.
"""

import asyncio
import re
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Self, cast

__all__ = ["Connection", "Connections", "Reply", "new_loop"]

_HEAD_END: Final = b"\r\n\r\n"
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.I)
_CLOSES: Final = re.compile(rb"\r\nconnection: *close", re.I)
_HEADER_LENGTH: Final = re.compile(rb"\r\ninference-header-content-length: *(\d+)", re.I)


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back.

    Attributes:
        status: of HTTP.
        body: all of it.
        json_length: bytes of the JSON with which the body begins; None if there is nothing else.
        closes: whether the server closes the connection after it.
    """

    status: int
    body: bytes
    json_length: int | None
    closes: bool = False


class Connection(asyncio.Protocol):
    """One connection, with one request under way at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._came = bytearray()
        self._closing = False
        self._answer: asyncio.Future[Reply] | None = None

    @property
    def open(self) -> bool:
        """Whether a request can be sent."""
        return self._transport is not None and not self._closing and not self._transport.is_closing()

    async def ask(self, request: bytes) -> Reply:
        """Send a request and wait for all of the answer.

        Raises:
            ConnectionError: the connection was closed before.
        """
        self._answer = asyncio.get_running_loop().create_future()
        self.send(request)
        return await self._answer

    def send(self, data: bytes) -> None:
        """Send something, and wait for nothing."""
        if self._transport is None:
            raise ConnectionError("the connection was closed")
        self._transport.write(data)

    def leave(self) -> None:
        """Go away at once, whatever is under way."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass

    def data_received(self, data: bytes) -> None:
        """A part of an answer."""
        self._came += data
        reply, length = _reply(self._came)
        if reply is not None:
            del self._came[:length]
            self._closing = reply.closes
            self._tell(lambda answer: answer.set_result(reply))

    def connection_lost(self, exc: Exception | None) -> None:
        """The other side closed it, or the network did."""
        self._transport = None
        self._tell(lambda answer: answer.set_exception(ConnectionError(f"closed before the answer came: {exc}")))

    def _tell(self, tell: "Callable[[asyncio.Future[Reply]], None]") -> None:
        answer, self._answer = self._answer, None
        if answer is not None and not answer.done():
            tell(answer)


def _reply(came: bytearray) -> tuple[Reply | None, int]:
    """The answer, if it is complete, and its length."""
    head_end = came.find(_HEAD_END)
    if head_end < 0:
        return None, 0
    head = bytes(came[: head_end + 2])
    length, json_length = _LENGTH.search(head), _HEADER_LENGTH.search(head)
    start = head_end + len(_HEAD_END)
    end = start + (int(length[1]) if length else 0)
    if len(came) < end:
        return None, 0
    told = int(json_length[1]) if json_length else None
    return Reply(int(head[9:12]), bytes(came[start:end]), told, _CLOSES.search(head) is not None), end


class Connections:
    """Connections to one server that are used again and again; as many are opened as are needed at a time.

    Those that nobody uses are closed when the context ends.

    Args:
        port: of the server, on this machine.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self._idle: deque[Connection] = deque()

    async def take(self) -> Connection:
        """An open connection that nobody uses."""
        while self._idle:
            connection = self._idle.pop()
            if connection.open:
                return connection
        _, connection = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", self.port)
        return connection

    def give(self, connection: Connection) -> None:
        """It is not used any more."""
        if connection.open:
            self._idle.append(connection)
        else:
            connection.leave()

    async def ask(self, request: bytes) -> Reply:
        """Send a request on some connection and wait for the answer.

        Raises:
            ConnectionError: there is none.
        """
        connection = await self.take()
        try:
            return await connection.ask(request)
        finally:
            self.give(connection)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        while self._idle:
            self._idle.pop().leave()
        await asyncio.sleep(0)  # the loop closes them in its next turn, and may be closed itself then


def new_loop() -> asyncio.AbstractEventLoop:
    """Uvloop's event loop where it is installed, as the server has it; else Python's."""
    with suppress(ImportError):
        import uvloop

        loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        return loop
    return asyncio.new_event_loop()
