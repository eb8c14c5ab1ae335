"""HTTP and gRPC in front of one guard, until somebody says stop."""

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final

import grpc  # type: ignore[import-untyped]
import uvicorn

from deepfailguard.errors import ConfigurationError
from deepfailguard.serving.app import create_app, service_of
from deepfailguard.serving.base import Runtime
from deepfailguard.serving.grpc_service import grpc_server
from deepfailguard.serving.http_protocol import BoundedProtocol
from deepfailguard.serving.service import Service
from deepfailguard.serving.settings import Listening, ServerSettings

__all__ = ["GuardServer", "open_port"]

logger = logging.getLogger(__name__)

_KEEP_ALIVE: Final = 30  # seconds that an idle connection stays open
_CLOSING: Final = 2  # seconds for connections to be closed once all is answered
_GLANCE: Final = 0.02  # seconds between looks at whether all is answered


class GuardServer:
    """Serves a guard by HTTP and gRPC on one event loop.

    Args:
        runtime: the guard; it is not closed.
        settings: what clients are allowed.
        listening: where.
        http_socket: bound already, as `open_port` returns; it is opened if None.

    Attributes:
        port: of HTTP.
        grpc_port: of gRPC; None if there is none.
        started: is set while requests are taken.
    """

    def __init__(
        self,
        runtime: Runtime,
        settings: ServerSettings | None = None,
        listening: Listening | None = None,
        http_socket: socket.socket | None = None,
    ) -> None:
        self.settings = settings or ServerSettings()
        self.listening = listening or Listening()
        self._socket = http_socket or open_port(self.listening.host, self.listening.port)
        self.port: int = self._socket.getsockname()[1]
        self.grpc_port: int | None = None
        self.started = threading.Event()
        self._app = create_app(runtime, self.settings)
        self._stop: Callable[[], object] = lambda: None

    @property
    def service(self) -> Service:
        """What the routes share."""
        return service_of(self._app)

    def run(self) -> bool:
        """Serve until SIGTERM, SIGINT or `stop`; then answer what was accepted, and return.

        A second signal ends the process at once. Signals are heeded in the main thread only.

        Returns:
            whether everything that was accepted was answered in time.
        """
        config = self._config()
        with contextlib.closing(self._socket), asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
            return runner.run(self._serve(_Http(config)))

    def stop(self) -> None:
        """Answer what was accepted, and no more; may be called from any thread."""
        self._stop()

    def _config(self) -> uvicorn.Config:
        listening = self.listening
        return uvicorn.Config(
            self._app,
            http=BoundedProtocol,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # a client must not say itself where it comes from
            limit_concurrency=self.settings.connections,
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=_CLOSING,
            ssl_certfile=listening.certificate,
            ssl_keyfile=listening.private_key,
        )

    async def _serve(self, http: "_Http") -> bool:
        told = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._stop = lambda: loop.call_soon_threadsafe(told.set)
        rpc = await self._start_grpc()
        serving = asyncio.create_task(http.serve(sockets=[self._socket]))
        try:
            with _signals(loop, told.set):
                await _until_started(http, serving)
                self._announce()
                self.started.set()
                await asyncio.wait([serving, asyncio.create_task(told.wait())], return_when=asyncio.FIRST_COMPLETED)
                answered = await self._drain(rpc)
        finally:
            self.started.clear()
            self._stop = lambda: None
            http.should_exit = True
            await serving
            if rpc is not None:
                await rpc.stop(None)
            self.service.close()
        return answered

    async def _start_grpc(self) -> Any:
        """The gRPC server, or None where none is wanted."""
        if self.listening.grpc_port is None:
            return None
        server, address = grpc_server(self.service), _address(self.listening.host, self.listening.grpc_port)
        try:
            if self.listening.certificate is None or self.listening.private_key is None:
                port = server.add_insecure_port(address)
            else:
                pair = (self.listening.private_key.read_bytes(), self.listening.certificate.read_bytes())
                port = server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
        except RuntimeError as error:
            raise _taken(self.listening.host, self.listening.grpc_port, str(error)) from error
        await server.start()
        self.grpc_port = int(port)
        return server

    async def _drain(self, rpc: Any) -> bool:
        """Let nobody in any more, and wait until everybody inside is answered; whether that came to an end."""
        door, batcher, seconds = self.service.door, self.service.batcher, self.settings.drain_seconds
        logger.info("stopping; %d requests are being answered", door.requests + batcher.requests)
        door.closing = True
        try:
            async with asyncio.timeout(seconds):
                stopping = None if rpc is None else asyncio.create_task(rpc.stop(seconds))
                while door.requests or batcher.requests:
                    await asyncio.sleep(_GLANCE)
                if stopping is not None:
                    await stopping
        except TimeoutError:
            logger.error("%d requests were not answered within %g s", door.requests + batcher.requests, seconds)
            return False
        return True

    def _announce(self) -> None:
        host, scheme = self.listening.host, "http" if self.listening.certificate is None else "https"
        also = "" if self.grpc_port is None else f"; gRPC on {_address(host, self.grpc_port)}"
        logger.info("serving on %s://%s%s", scheme, _address(host, self.port), also)


class _Http(uvicorn.Server):
    """uvicorn without its signal handlers: this server must first let gRPC and the guard finish."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


async def _until_started(http: uvicorn.Server, serving: "asyncio.Task[None]") -> None:
    while not http.started:
        if serving.done():
            await serving
            raise ConfigurationError("the HTTP server ended before it had started; its log tells why")
        await asyncio.sleep(_GLANCE)


@contextlib.contextmanager
def _signals(loop: asyncio.AbstractEventLoop, stop: Callable[[], object]) -> Iterator[None]:
    """Stop at the first SIGTERM or SIGINT; the next one does what it does without us."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    watched = (signal.SIGTERM, signal.SIGINT)

    def forget() -> None:
        for each in watched:
            loop.remove_signal_handler(each)

    def first() -> None:
        forget()
        stop()

    for each in watched:
        loop.add_signal_handler(each, first)
    try:
        yield
    finally:
        forget()


def open_port(host: str, port: int) -> socket.socket:
    """A socket that is bound to a port, so that nobody else takes it while a guard is loaded.

    Raises:
        ConfigurationError: somebody has it, or there is no such address.
    """
    opened: socket.socket | None = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        opened = socket.socket(family, kind, protocol)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
    except OSError as error:
        if opened is not None:
            opened.close()
        raise _taken(host, port, error.strerror or str(error)) from error
    opened.set_inheritable(False)
    return opened


def _taken(host: str, port: int, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"cannot listen on {_address(host, port)}: {why}; choose another port, or end who listens there"
    )


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
