"""The Open Inference Protocol, version 2, over gRPC."""

import logging
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final

import grpc  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

import deepfailguard
from deepfailguard.guard.saved import GuardCard
from deepfailguard.serving.answers import Answer
from deepfailguard.serving.grpc_messages import METHODS, SERVICE, message
from deepfailguard.serving.keys import check_key, client_of
from deepfailguard.serving.open_inference import PLATFORM, SERVER_NAME, check_model
from deepfailguard.serving.refusing import SHUTTING_DOWN, RefusedError
from deepfailguard.serving.service import Service
from deepfailguard.serving.settings import ServerSettings
from deepfailguard.serving.tensors import (
    EXTENSIONS,
    INPUT,
    MODEL_VERSION,
    OUTPUTS,
    InferRequest,
    check_outputs,
    image_shape,
    input_tensors,
    number_type,
    output_tensors,
    reshaped,
    response_parameters,
    seconds_of,
)

__all__ = ["grpc_server"]

logger = logging.getLogger(__name__)

_OPEN: Final = frozenset(f"/{SERVICE}/{name}" for name in ("ServerLive", "ServerReady"))
_AROUND: Final = 65536  # bytes of a message beside its tensors
_MORE_CALLS: Final = 16
_CONTENTS: Final = {"FP32": "fp32_contents", "FP64": "fp64_contents"}
_STATUS: Final = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    499: grpc.StatusCode.CANCELLED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}

_Handler = Callable[[Any, Any, Mapping[str, str]], Awaitable[Any]]


def grpc_server(service: Service) -> Any:
    """A server for the running event loop that shares the batcher with HTTP; ports are added by who starts it."""
    settings = service.settings
    options = [
        ("grpc.max_receive_message_length", settings.largest_body + _AROUND),
        ("grpc.max_metadata_size", 16384),
        ("grpc.so_reuseport", 0),  # a port that another server has is an error, not something to share
    ]
    server = grpc.aio.server(
        interceptors=[_KeyCheck(settings)], options=options, maximum_concurrent_rpcs=_most_calls(settings)
    )
    routes = _Routes(service)
    handlers = {name: _method(name, getattr(routes, _snake(name))) for name in METHODS}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    return server


def _most_calls(settings: ServerSettings) -> int:
    """How many calls there may be at a time: gRPC tells nothing of a message's size before it has it as a whole.

    Where everybody may ask, as many as one client may make, and a few for probes.
    """
    return settings.per_client + (_MORE_CALLS if settings.key is None else settings.queue)


class _KeyCheck(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Refuses calls that lack the key before their messages are read."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        """The method that was called, or one that refuses."""
        try:
            if details.method not in _OPEN:
                check_key(_headers(details.invocation_metadata), self.settings)
        except RefusedError as refusal:
            return _refusing(refusal)
        return await continuation(details)


def _refusing(refusal: RefusedError) -> Any:
    """A method that takes a stream, and reads none of it: a message would be read before its method is called."""

    async def refuse(_: Any, context: Any) -> None:
        await _abort(context, refusal)

    return grpc.stream_unary_rpc_method_handler(refuse)


def _headers(metadata: Iterable[tuple[str, str | bytes]]) -> dict[str, str]:
    return {key: value for key, value in metadata if isinstance(value, str)}


def _snake(name: str) -> str:
    """`ServerLive` as `server_live`."""
    return "".join(f"_{each.lower()}" if each.isupper() else each for each in name).lstrip("_")


def _method(name: str, handler: _Handler) -> Any:
    """A method that tells what goes wrong as gRPC does."""

    async def serve(request: Any, context: Any) -> Any:
        try:
            return await handler(request, context, _headers(context.invocation_metadata()))
        except RefusedError as refusal:
            await _abort(context, refusal)
        except Exception as error:
            if isinstance(error, grpc.aio.AbortError):
                raise
            number = uuid.uuid4().hex[:12]
            logger.exception("request %s failed: %s", number, name)
            await context.abort(grpc.StatusCode.INTERNAL, f"the server failed; its log tells why, look for {number}")

    return grpc.unary_unary_rpc_method_handler(
        serve,
        request_deserializer=message(f"{name}Request").FromString,
        response_serializer=message(f"{name}Response").SerializeToString,
    )


async def _abort(context: Any, refusal: RefusedError) -> None:
    retry = () if refusal.retry_after is None else (("retry-after", str(refusal.retry_after)),)
    code = _STATUS.get(refusal.status, grpc.StatusCode.UNKNOWN)
    await context.abort(code, refusal.text, trailing_metadata=retry)


class _Routes:
    """The protocol's methods."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def server_live(self, _: Any, __: Any, ___: Mapping[str, str]) -> Any:
        return message("ServerLiveResponse")(live=True)

    async def server_ready(self, _: Any, __: Any, ___: Mapping[str, str]) -> Any:
        return message("ServerReadyResponse")(ready=await self.service.ready())

    async def model_ready(self, request: Any, _: Any, __: Mapping[str, str]) -> Any:
        check_model(self.service, request.name, request.version or MODEL_VERSION)
        return message("ModelReadyResponse")(ready=await self.service.ready())

    async def server_metadata(self, _: Any, __: Any, ___: Mapping[str, str]) -> Any:
        return message("ServerMetadataResponse")(
            name=SERVER_NAME, version=deepfailguard.__version__, extensions=EXTENSIONS
        )

    async def model_metadata(self, request: Any, _: Any, __: Mapping[str, str]) -> Any:
        check_model(self.service, request.name, request.version or MODEL_VERSION)
        card = self.service.runtime.card
        return message("ModelMetadataResponse")(
            name=request.name,
            versions=[MODEL_VERSION],
            platform=PLATFORM,
            inputs=input_tensors(card),
            outputs=output_tensors(card),
        )

    async def model_infer(self, request: Any, context: Any, headers: Mapping[str, str]) -> Any:
        service = self.service
        if service.door.closing:
            raise RefusedError(503, SHUTTING_DOWN, 1)
        check_model(service, request.model_name, request.model_version or MODEL_VERSION)
        asked = _asked(request, service.runtime.card, service.settings)
        left = context.time_remaining()
        times = [each for each in (asked.seconds, left) if each is not None]
        client = client_of(context.peer().rpartition(":")[0], headers, service.settings)
        answer = await service.batcher.infer(asked.images, client, max(0.0, min(times)) if times else None)
        return _response(answer, asked, request.model_name)


def _asked(request: Any, card: GuardCard, settings: ServerSettings) -> InferRequest:
    """A request from its message.

    Raises:
        RefusedError: it is not what the protocol, or the guard, expects.
    """
    if len(request.inputs) != 1:
        raise RefusedError(400, f"expected one input, {INPUT!r}, got {len(request.inputs)}")
    if request.ByteSize() > settings.largest_body + _AROUND:
        raise RefusedError(413, f"expected at most {settings.largest_body} bytes; send fewer images")
    wanted = [each.name for each in request.outputs]
    check_outputs(wanted)
    parameters = {
        key: getattr(each, each.WhichOneof("parameter_choice") or "", None) for key, each in request.parameters.items()
    }
    return InferRequest(
        _images(request, card), request.id, dict.fromkeys(wanted or OUTPUTS, True), seconds_of(parameters)
    )


def _images(request: Any, card: GuardCard) -> NDArray[Any]:
    tensor, raw = request.inputs[0], request.raw_input_contents
    shape = image_shape(tensor.name, list(tensor.shape), card)
    dtype = number_type(tensor.datatype)
    if "shared_memory_region" in tensor.parameters:
        raise RefusedError(400, "there is no shared memory with this server; send the tensor's data")
    if len(raw) > 1:
        raise RefusedError(400, f"expected the bytes of one input in raw_input_contents, got those of {len(raw)}")
    if raw:
        if len(raw[0]) % np.dtype(dtype).itemsize:
            raise RefusedError(400, f"{len(raw[0])} bytes are no whole number of {tensor.datatype} values")
        return reshaped(np.frombuffer(raw[0], dtype=dtype), shape)
    if tensor.datatype not in _CONTENTS:
        raise RefusedError(400, f"expected {tensor.datatype} images in raw_input_contents; there is no field for them")
    return reshaped(np.array(getattr(tensor.contents, _CONTENTS[tensor.datatype]), dtype=dtype), shape)


def _response(answer: Answer, asked: InferRequest, model: str) -> Any:
    response = message("ModelInferResponse")(model_name=model, model_version=MODEL_VERSION, id=asked.identity)
    for name, value in response_parameters(answer).items():
        if isinstance(value, bool):
            response.parameters[name].bool_param = value
        else:
            response.parameters[name].string_param = value
    for name in asked.outputs:
        values = answer.outputs[name]
        response.outputs.add(name=name, datatype=OUTPUTS[name], shape=values.shape)
        response.raw_output_contents.append(values.tobytes())
    return response
