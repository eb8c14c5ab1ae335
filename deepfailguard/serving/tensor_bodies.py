"""Inference requests and responses as bodies of HTTP: JSON, and the binary tensor extension."""

import math
import zlib
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import orjson
from numpy.typing import NDArray

from deepfailguard.guard.saved import GuardCard
from deepfailguard.serving.answers import Answer
from deepfailguard.serving.refusing import RefusedError
from deepfailguard.serving.tensors import (
    MODEL_VERSION,
    OUTPUTS,
    InferRequest,
    check_outputs,
    image_shape,
    number_type,
    reshaped,
    response_parameters,
    seconds_of,
)

__all__ = ["LARGEST_JSON", "decode_request", "encode_response", "unpacked"]

LARGEST_JSON: Final = 4 << 20
"""Bytes of JSON in a request: reading it holds up everybody else; bytes after it are as good as free."""

_NUMBERS: Final = "fiu"  # kinds of numpy arrays
_WINDOWS: Final = {"gzip": 31, "deflate": 15}  # of zlib
_AS_BYTES: Final = "send images as binary data (binary_data_size), as tritonclient does by itself"


def unpacked(body: bytes, encoding: str, header_length: str | None, most: int) -> bytes:
    """A body without its compression.

    Args:
        body: as it came.
        encoding: its compression, as `Content-Encoding` tells it.
        header_length: of the JSON, as `decode_request` takes it; None for all of the body.
        most: bytes that a body may have; JSON alone may have no more than `LARGEST_JSON`.

    Raises:
        RefusedError: it is compressed in another way, damaged, or larger than it may be when unpacked.
    """
    if encoding in ("", "identity"):
        return body
    if encoding not in _WINDOWS:
        raise RefusedError(415, f"expected a body that is plain, gzip or deflate, got {encoding!r}; send it as it is")
    if header_length is None:
        most = min(most, LARGEST_JSON)
    unpacker = zlib.decompressobj(_WINDOWS[encoding])
    try:
        plain = unpacker.decompress(body, most)
    except zlib.error as error:
        raise RefusedError(400, f"the body is no {encoding}: {error}; send it as it is") from error
    if unpacker.unconsumed_tail:
        hint = f"{_AS_BYTES}, or fewer images" if header_length is None else "send fewer images"
        raise RefusedError(413, f"the unpacked body is larger than {most} bytes; {hint}")
    if not unpacker.eof:
        raise RefusedError(400, f"the {encoding} body ends too early; send all of it")
    return plain


def decode_request(body: bytes, header_length: str | None, card: GuardCard) -> InferRequest:
    """A request from its body.

    Args:
        body: JSON, and what comes after it.
        header_length: of the JSON in bytes, as `Inference-Header-Content-Length` tells it; None for all of the body.
        card: the guard's.

    Raises:
        RefusedError: the request is not what the protocol, or the guard, expects.
    """
    length = _length(header_length, len(body))
    if length > LARGEST_JSON:
        raise RefusedError(413, f"expected at most {LARGEST_JSON} bytes of JSON, got {length}; {_AS_BYTES}")
    try:
        content = orjson.loads(memoryview(body)[:length] if length < len(body) else body)
    except orjson.JSONDecodeError as error:
        raise RefusedError(400, f"expected JSON in the first {length} bytes of the body: {error}") from error
    if not isinstance(content, dict):
        raise RefusedError(400, f"expected a JSON object, got a {type(content).__name__}")
    tensor = _only_input(content)
    parameters = _object(content, "parameters")
    return InferRequest(
        images=_images(tensor, memoryview(body)[length:], card),
        identity=_identity(content),
        outputs=_outputs(content, parameters),
        seconds=seconds_of(parameters),
    )


def _length(header: str | None, size: int) -> int:
    if header is None:
        return size
    if not (header.isascii() and header.isdigit()) or len(header) > 12 or int(header) > size:
        raise RefusedError(
            400, f"expected Inference-Header-Content-Length in [0, {size}], the body's length, got {header[:20]!r}"
        )
    return int(header)


def _only_input(content: Mapping[str, Any]) -> dict[str, Any]:
    inputs = content.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        got = f"{len(inputs)} inputs" if isinstance(inputs, list) else f"a {type(inputs).__name__}"
        raise RefusedError(400, f"expected 'inputs' to be a list of one object, got {got}")
    tensor: dict[str, Any] = inputs[0]
    return tensor


def _object(holder: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = holder.get(name, {})
    if not isinstance(value, dict):
        raise RefusedError(400, f"expected {name!r} to be a JSON object, got a {type(value).__name__}")
    return value


def _identity(content: Mapping[str, Any]) -> str:
    identity = content.get("id", "")
    if not isinstance(identity, str):
        raise RefusedError(400, f"expected 'id' to be a text, got a {type(identity).__name__}")
    return identity


def _images(tensor: Mapping[str, Any], rest: memoryview, card: GuardCard) -> NDArray[Any]:
    shape = image_shape(tensor.get("name"), tensor.get("shape"), card)
    dtype = number_type(tensor.get("datatype"))
    parameters = _object(tensor, "parameters")
    if "shared_memory_region" in parameters:
        raise RefusedError(400, "there is no shared memory with this server; send the tensor's data")
    size = parameters.get("binary_data_size")
    if size is None:
        return reshaped(_numbers(tensor, shape), shape)
    if type(size) is not int or size != len(rest):
        raise RefusedError(
            400,
            f"expected binary_data_size to be the {len(rest)} bytes after the JSON, got {size!r}; check "
            "Inference-Header-Content-Length, too",
        )
    if size % np.dtype(dtype).itemsize:
        raise RefusedError(400, f"{size} bytes are no whole number of {tensor['datatype']} values")
    return reshaped(np.frombuffer(rest, dtype=dtype), shape)


def _numbers(tensor: Mapping[str, Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """The numbers of a tensor's JSON, nested or flat."""
    data = tensor.get("data")
    if not isinstance(data, list):
        raise RefusedError(
            400, f"expected 'data' to be a list of numbers, or binary_data_size, got a {type(data).__name__}"
        )
    count = math.prod(shape)
    if len(data) not in (shape[0], count):
        raise RefusedError(
            400, f"expected {count} numbers for the shape {list(shape)}, flat or nested, got {len(data)} values"
        )
    try:
        values: NDArray[Any] = np.array(data)
    except ValueError as error:
        raise RefusedError(400, "expected 'data' to be a list of numbers, flat or nested as the shape says") from error
    if values.size and values.dtype.kind not in _NUMBERS:
        raise RefusedError(400, "expected 'data' to hold nothing but numbers; JSON has no NaN: send binary data for it")
    return values.astype(np.float64)


def _outputs(content: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, bool]:
    usual = _flag(parameters, "binary_data_output")
    wanted = content.get("outputs")
    if wanted is None or wanted == []:
        return dict.fromkeys(OUTPUTS, usual)
    if not isinstance(wanted, list) or not all(isinstance(each, dict) for each in wanted):
        raise RefusedError(400, f"expected 'outputs' to be a list of objects, got {type(wanted).__name__}")
    names = [each.get("name") for each in wanted]
    if not all(isinstance(name, str) for name in names):
        raise RefusedError(400, f"expected each of 'outputs' to have a name; there are {', '.join(OUTPUTS)}")
    check_outputs(names)
    return {each["name"]: _wants_bytes(_object(each, "parameters"), usual) for each in wanted}


def _wants_bytes(parameters: Mapping[str, Any], usual: bool) -> bool:
    for name in ("classification", "shared_memory_region"):
        if parameters.get(name):
            raise RefusedError(400, f"there is no {name} here; leave it out and read the output itself")
    return _flag(parameters, "binary_data", usual)


def _flag(parameters: Mapping[str, Any], name: str, otherwise: bool = False) -> bool:
    value = parameters.get(name, otherwise)
    if not isinstance(value, bool):
        raise RefusedError(400, f"expected {name} to be true or false, got a {type(value).__name__}")
    return value


def encode_response(answer: Answer, request: InferRequest, model: str) -> tuple[bytes, int | None]:
    """The body of a response, and the length of its JSON where bytes come after it."""
    tensors: list[dict[str, Any]] = []
    buffers: list[bytes] = []
    for name, as_bytes in request.outputs.items():
        values = answer.outputs[name]
        tensor: dict[str, Any] = {"name": name, "datatype": OUTPUTS[name], "shape": list(values.shape)}
        if as_bytes:
            buffers.append(values.tobytes())
            tensor["parameters"] = {"binary_data_size": len(buffers[-1])}
        else:
            tensor["data"] = np.ascontiguousarray(values).ravel()
        tensors.append(tensor)
    content: dict[str, Any] = {"model_name": model, "model_version": MODEL_VERSION}
    if request.identity:
        content["id"] = request.identity
    content |= {"parameters": response_parameters(answer), "outputs": tensors}
    header = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return (b"".join([header, *buffers]), len(header)) if buffers else (header, None)
