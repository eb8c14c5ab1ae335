"""HTTP connections whose heads are bounded, in size and in time, and whose responses are read in time."""

import asyncio
from collections import deque
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

__all__ = ["BoundedProtocol"]

_LARGEST_HEAD: Final = 65536
_HEAD_SECONDS: Final = 10.0
_UNREAD_SECONDS: Final = 10.0


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which itself would wait for ever for a head, and keep one of any size.

    A connection has ten seconds from its opening, or from a request's first byte, to the end of the request's head. A
    client has ten seconds to read so much that all that was written is on its way; closing would wait for it, too.
    """

    _head: int | None = 0  # bytes of a head that came so far; None while none is expected
    _alarm: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a head."""
        super().connection_made(transport)
        self._open: deque[RequestResponseCycle] = deque()
        if self.scheme == "http":  # TLS itself gives a connection that is closed 30 seconds, and would stay paused at 0
            transport.set_write_buffer_limits(high=0)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._head_is_complete()
        self._is_read()
        for cycle in self._open:  # uvicorn itself tells the last one only, and others would go on writing
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client does not read as fast as we write: begin to wait for it."""
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(_UNREAD_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has read."""
        self._is_read()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        """Read on; refuse a head that grows too large."""
        super().data_received(data)
        if self._head is not None:
            self._head += len(data)
            if self._head > _LARGEST_HEAD and not self.transport.is_closing():
                self.send_400_response(f"The head of a request must not be larger than {_LARGEST_HEAD} bytes.")

    def on_message_begin(self) -> None:
        """A request's first byte."""
        super().on_message_begin()
        self._expect_head()

    def on_headers_complete(self) -> None:
        """The body comes next."""
        self._head_is_complete()
        super().on_headers_complete()
        if not self._open or self._open[-1] is not self.cycle:
            self._open.append(self.cycle)

    def on_response_complete(self) -> None:
        """The first of the requests that are open was answered."""
        self._open.popleft()
        super().on_response_complete()

    def _expect_head(self) -> None:
        self._head = 0
        if self._alarm is None:
            self._alarm = self.loop.call_later(_HEAD_SECONDS, self._too_late)

    def _head_is_complete(self) -> None:
        self._head = None
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _is_read(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _too_late(self) -> None:
        transport: Any = self.transport
        if not transport.is_closing():
            transport.close()
