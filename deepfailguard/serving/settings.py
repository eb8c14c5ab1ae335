"""What a server allows its clients, and where it listens."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from deepfailguard.errors import ConfigurationError

__all__ = ["Listening", "ServerSettings"]

_FEWEST_CHARACTERS: Final = 16
_COUNTS: Final = (
    "max_batch",
    "queue",
    "per_client",
    "largest_body",
    "bodies",
    "largest_pixels",
    "decoders",
    "connections",
)
_TIMES: Final = ("deadline", "body_seconds", "drain_seconds")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What a server allows its clients. Times are in seconds.

    Attributes:
        model_name: the guard's name in the Open Inference Protocol.
        max_batch: images that the guard is asked about at once, at most.
        max_wait: for more images, while the guard has nothing to do.
        queue: images that may wait; more are refused with 503.
        per_client: requests of one client at the same time; more are refused with 429. A client is an
            address; where there is a key, the two together.
        deadline: from when a request has arrived as a whole to its answer; none comes later.
        largest_body: of a request, bytes.
        bodies: bytes of all requests' bodies that are held at the same time; more are refused with 503.
        largest_pixels: of a picture, width times height.
        body_seconds: that a request's body may take to arrive.
        drain_seconds: that accepted requests have when the server is told to stop.
        decoders: threads that decode pictures.
        connections: open at the same time.
        key: what clients must know; None for everybody may ask.
        admin_key: what whoever changes versions must know; None for nobody may.

    >>> ServerSettings(max_batch=32).queue
    1024
    """

    model_name: str = "guard"
    max_batch: int = 64
    max_wait: float = 0.002
    queue: int = 1024
    per_client: int = 256
    deadline: float = 1.0
    largest_body: int = 32 << 20
    bodies: int = 256 << 20
    largest_pixels: int = 16_000_000
    body_seconds: float = 10.0
    drain_seconds: float = 30.0
    decoders: int = 2
    connections: int = 900
    key: str | None = field(default=None, repr=False)
    admin_key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.model_name):
            raise ConfigurationError(
                f"model_name must be letters, digits, '.', '_' and '-', got {self.model_name!r}; 'guard' is usual"
            )
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} must be >= 1, got {getattr(self, name)}")
        for name in _TIMES:
            if not 0 < getattr(self, name) <= 3600:
                raise ConfigurationError(f"{name} must be in (0, 3600] seconds, got {getattr(self, name)}")
        if not 0 <= self.max_wait < self.deadline:
            raise ConfigurationError(
                f"max_wait must be >= 0 and shorter than the deadline of {self.deadline} s, got {self.max_wait}"
            )
        if self.queue < self.max_batch:
            raise ConfigurationError(f"a queue of {self.queue} images is shorter than a batch of {self.max_batch}")
        if self.bodies < self.largest_body:
            raise ConfigurationError(f"bodies of {self.bodies} bytes do not hold the largest, of {self.largest_body}")
        for name in ("key", "admin_key"):
            _check_key(name, getattr(self, name))


def _check_key(name: str, key: str | None) -> None:
    if key is not None and (len(key) < _FEWEST_CHARACTERS or not key.isascii() or not key.isprintable() or " " in key):
        raise ConfigurationError(
            f"{name} must have at least {_FEWEST_CHARACTERS} printable ASCII characters without spaces, got "
            f"{len(key)} characters; make one with: openssl rand -hex 24"
        )


@dataclass(frozen=True, slots=True)
class Listening:
    """Where a server listens.

    Attributes:
        host: address or name.
        port: of HTTP; 0 for any that is free.
        grpc_port: of gRPC; 0 for any that is free, None for no gRPC.
        certificate: PEM file of the certificate chain; None for no TLS.
        private_key: PEM file of its private key.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int | None = 8001
    certificate: Path | None = None
    private_key: Path | None = None

    def __post_init__(self) -> None:
        for name in ("port", "grpc_port"):
            port = getattr(self, name)
            if port is not None and not 0 <= port <= 65535:
                raise ConfigurationError(f"{name} must be in [0, 65535], got {port}")
        if self.port and self.port == self.grpc_port:
            raise ConfigurationError(f"HTTP and gRPC cannot both listen on port {self.port}; choose another grpc_port")
        if (self.certificate is None) != (self.private_key is None):
            raise ConfigurationError("TLS needs both a certificate and its private key; give both files, or neither")
        for path in filter(None, (self.certificate, self.private_key)):
            if not path.is_file():
                raise ConfigurationError(f"expected a PEM file for TLS, but there is no file {path}")
