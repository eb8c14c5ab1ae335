"""Requests as bytes, built once."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["ANSWERS", "INFER", "as_binary", "as_json", "as_picture", "post", "tensor_json", "write_requests"]

INFER: Final = "/v2/models/guard/infer"
ANSWERS: Final = ("labels", "abstained", "failure_probability", "version_labels")
_LENGTH: Final = "Inference-Header-Content-Length"
_WHITE: Final = 255


def post(path: str, headers: Mapping[str, str], body: bytes) -> bytes:
    """A whole request."""
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1"]
    lines += [f"{name}: {value}" for name, value in {**headers, "Content-Length": str(len(body))}.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def tensor_json(images: NDArray[Any], **changes: Any) -> dict[str, Any]:
    """What a request's JSON says of its images (B, C, H, W), which come as bytes after it, but for some changes."""
    parameters = {"binary_data_size": images.nbytes}
    return {"name": "images", "datatype": "FP32", "shape": list(images.shape), "parameters": parameters} | changes


def as_binary(images: NDArray[Any], outputs: Sequence[str] = (), **changes: Any) -> bytes:
    """A request by the Open Inference Protocol with binary tensors, as tritonclient sends it.

    Args:
        images: (B, C, H, W) float32.
        outputs: those that are wanted; all if there are none.
        changes: of the description of the images, for requests that are not sound.
    """
    asked: dict[str, Any] = {"inputs": [tensor_json(images, **changes)], "parameters": {"binary_data_output": True}}
    if outputs:
        asked["outputs"] = [{"name": name} for name in outputs]
    header = json.dumps(asked).encode()
    headers = {"Content-Type": "application/octet-stream", _LENGTH: str(len(header))}
    return post(INFER, headers, header + np.ascontiguousarray(images, dtype=np.float32).tobytes())


def as_json(images: NDArray[Any], outputs: Sequence[str] = ()) -> bytes:
    """The same with numbers as text; the answer still comes as bytes."""
    tensor = tensor_json(images, data=images.ravel().tolist())
    del tensor["parameters"]
    asked: dict[str, Any] = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
    if outputs:
        asked["outputs"] = [{"name": name} for name in outputs]
    return post(INFER, {"Content-Type": "application/json"}, json.dumps(asked).encode())


def as_picture(image: NDArray[Any]) -> bytes:
    """A request for the verdict on a picture (1, H, W) in [0, 1], as a PNG."""
    stream = io.BytesIO()
    Image.fromarray(np.rint(image[0] * _WHITE).astype(np.uint8)).save(stream, "PNG")
    return post("/predict", {"Content-Type": "image/png"}, stream.getvalue())


def write_requests(folder: Path, images: NDArray[Any], size: int, count: int) -> list[Path]:
    """Files with one request each for so many images; clients in processes of their own read them.

    Args:
        folder: for the files.
        images: (L, C, H, W) float32, which are taken in turn.
        size: images in a request.
        count: requests.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        rows = np.arange(number * size, (number + 1) * size) % len(images)
        paths.append(folder / f"{size}-{number:03d}.http")
        paths[-1].write_bytes(as_binary(images[rows]))
    return paths
