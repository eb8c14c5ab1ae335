"""Requests that are not sound, and clients that go away."""

import asyncio
import random
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.serving_load.connections import Connections
from benchmarks.serving_load.requests import INFER, as_binary, post

__all__ = ["LEAVING", "Malformed", "leave", "malformed", "spoilt"]

LEAVING: Final = ("at once", "half way", "with its request sent", "while it waits")
"""When a client goes away."""

_BINARY: Final = {"Content-Type": "application/octet-stream"}
_JSON: Final = {"Content-Type": "application/json"}
_PATIENCE: Final = 0.02


@dataclass(frozen=True, slots=True)
class Malformed:
    """A request that the server must refuse.

    Attributes:
        name: what is wrong with it.
        request: as bytes.
        status: that must come.
    """

    name: str
    request: bytes
    status: int


def malformed(image: NDArray[Any]) -> list[Malformed]:
    """One of each kind, made of a sound image (1, C, H, W)."""
    sound = as_binary(image)
    far = [1, *(10 * size for size in image.shape[1:])]
    cut = b'{"inputs": [{"name": "images"'
    return [
        Malformed("JSON that ends too early", post(INFER, _JSON, cut), 400),
        Malformed("JSON that is no object", post(INFER, _JSON, b"[1, 2, 3]"), 400),
        Malformed("no inputs", post(INFER, _JSON, b"{}"), 400),
        Malformed("another shape", as_binary(image, shape=list(image.shape[1:])), 400),
        Malformed("larger images", as_binary(image, shape=far), 400),
        Malformed("too many images for the data", as_binary(image, shape=[7, *image.shape[1:]]), 400),
        Malformed("another type", as_binary(image, datatype="INT8"), 400),
        Malformed("another number of bytes", as_binary(image, parameters={"binary_data_size": 3}), 400),
        Malformed("another input", as_binary(image, name="pixels"), 400),
        Malformed("an unknown output", as_binary(image, ("truth",)), 400),
        Malformed("a header longer than the body", _longer_header(), 400),
        Malformed("no gzip", post(INFER, {**_JSON, "Content-Encoding": "gzip"}, b"no gzip"), 400),
        Malformed("another compression", post(INFER, {**_JSON, "Content-Encoding": "br"}, b"{}"), 415),
        Malformed("another content type", post(INFER, {"Content-Type": "text/plain"}, b"hello"), 415),
        Malformed("another model", sound.replace(b"/models/guard/", b"/models/other/", 1), 404),
        Malformed("another page", sound.replace(INFER.encode(), b"/nothing/here", 1), 404),
        Malformed("no picture", post("/predict", {"Content-Type": "image/png"}, b"\x89PNG nothing more"), 400),
        Malformed(
            "too large", f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999999\r\n\r\n".encode(), 413
        ),
        Malformed("no HTTP", b"HELLO\r\n\r\n", 400),
    ]


def _longer_header() -> bytes:
    return post(INFER, {**_BINARY, "Inference-Header-Content-Length": "1000"}, b"{}")


def spoilt(images: NDArray[Any], rows: NDArray[Any], draw: random.Random) -> tuple[NDArray[Any], NDArray[Any]]:
    """The images with one or more that are not sound, and their rows with -1 for these."""
    images, rows = images.copy(), rows.copy()
    for place in draw.sample(range(len(rows)), draw.randint(1, max(1, len(rows) // 2))):
        value = draw.choice([np.nan, np.inf, -1.0, 2.0])
        images[place].reshape(-1)[draw.randrange(images[place].size)] = value
        rows[place] = -1
    return images, rows


async def leave(connections: Connections, request: bytes, when: str) -> None:
    """Go away, on a connection that is used for nothing else."""
    connection = await connections.take()
    try:
        if when == "half way":
            connection.send(request[: len(request) // 2])
            await asyncio.sleep(_PATIENCE)
        elif when != "at once":
            connection.send(request)
            await asyncio.sleep(_PATIENCE if when == "while it waits" else 0)
    finally:
        connection.leave()
