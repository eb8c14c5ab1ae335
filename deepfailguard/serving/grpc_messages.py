"""The messages of the Open Inference Protocol over gRPC, made when they are needed instead of generated.

They live in a descriptor pool of their own, so that other code for the same protocol in this process (a client's,
say) does not clash with them. Names and numbers are those of the protocol's `grpc_service.proto`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from google.protobuf.descriptor_pb2 import (  # type: ignore[import-untyped]
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)
from google.protobuf.descriptor_pool import DescriptorPool  # type: ignore[import-untyped]
from google.protobuf.message_factory import GetMessageClass  # type: ignore[import-untyped]

__all__ = ["METHODS", "PACKAGE", "SERVICE", "message"]

PACKAGE: Final = "inference"
SERVICE: Final = f"{PACKAGE}.GRPCInferenceService"
METHODS: Final = ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer")
"""Each takes a message NAMERequest and returns a NAMEResponse."""

_MESSAGES: Final = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "live: bool = 1",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "ready: bool = 1",
    "ModelReadyRequest": "name: string = 1, version: string = 2",
    "ModelReadyResponse": "ready: bool = 1",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "name: string = 1, version: string = 2, extensions: string* = 3",
    "ModelMetadataRequest": "name: string = 1, version: string = 2",
    "ModelMetadataResponse": (
        "name: string = 1, versions: string* = 2, platform: string = 3, "
        "inputs: ModelMetadataResponse.TensorMetadata* = 4, outputs: ModelMetadataResponse.TensorMetadata* = 5"
    ),
    "ModelMetadataResponse.TensorMetadata": "name: string = 1, datatype: string = 2, shape: int64* = 3",
    "InferParameter": (
        "bool_param: bool | 1, int64_param: int64 | 2, string_param: string | 3, double_param: double | 4, "
        "uint64_param: uint64 | 5"
    ),
    "InferTensorContents": (
        "bool_contents: bool* = 1, int_contents: int32* = 2, int64_contents: int64* = 3, uint_contents: uint32* = 4, "
        "uint64_contents: uint64* = 5, fp32_contents: float* = 6, fp64_contents: double* = 7, "
        "bytes_contents: bytes* = 8"
    ),
    "ModelInferRequest": (
        "model_name: string = 1, model_version: string = 2, id: string = 3, parameters: map = 4, "
        "inputs: ModelInferRequest.InferInputTensor* = 5, "
        "outputs: ModelInferRequest.InferRequestedOutputTensor* = 6, raw_input_contents: bytes* = 7"
    ),
    "ModelInferRequest.InferInputTensor": (
        "name: string = 1, datatype: string = 2, shape: int64* = 3, parameters: map = 4, "
        "contents: InferTensorContents = 5"
    ),
    "ModelInferRequest.InferRequestedOutputTensor": "name: string = 1, parameters: map = 2",
    "ModelInferResponse": (
        "model_name: string = 1, model_version: string = 2, id: string = 3, parameters: map = 4, "
        "outputs: ModelInferResponse.InferOutputTensor* = 5, raw_output_contents: bytes* = 6"
    ),
    "ModelInferResponse.InferOutputTensor": (
        "name: string = 1, datatype: string = 2, shape: int64* = 3, parameters: map = 4, "
        "contents: InferTensorContents = 5"
    ),
}
"""Fields as NAME: TYPE = NUMBER; TYPE* is repeated, `map` is from texts to parameters, | NUMBER is one of a choice."""

_TYPES: Final = {
    "bool": FieldDescriptorProto.TYPE_BOOL,
    "int32": FieldDescriptorProto.TYPE_INT32,
    "int64": FieldDescriptorProto.TYPE_INT64,
    "uint32": FieldDescriptorProto.TYPE_UINT32,
    "uint64": FieldDescriptorProto.TYPE_UINT64,
    "float": FieldDescriptorProto.TYPE_FLOAT,
    "double": FieldDescriptorProto.TYPE_DOUBLE,
    "string": FieldDescriptorProto.TYPE_STRING,
    "bytes": FieldDescriptorProto.TYPE_BYTES,
}


@dataclass(frozen=True, slots=True)
class _Field:
    """One field as the table tells it."""

    name: str
    kind: str
    number: int
    repeated: bool
    choice: bool


def _fields(told: str) -> Iterator[_Field]:
    for each in filter(None, told.split(", ")):
        name, _, rest = each.partition(": ")
        kind, sign, number = rest.split(" ")
        yield _Field(name, kind.removesuffix("*"), int(number), kind.endswith("*"), sign == "|")


def _add_field(holder: DescriptorProto, full_name: str, field: _Field) -> None:
    added = holder.field.add(name=field.name, number=field.number)
    added.label = FieldDescriptorProto.LABEL_REPEATED if field.repeated else FieldDescriptorProto.LABEL_OPTIONAL
    if field.kind in _TYPES:
        added.type = _TYPES[field.kind]
    elif field.kind == "map":
        _add_map(holder)
        added.label = FieldDescriptorProto.LABEL_REPEATED
        added.type, added.type_name = FieldDescriptorProto.TYPE_MESSAGE, f".{PACKAGE}.{full_name}.ParametersEntry"
    else:
        added.type, added.type_name = FieldDescriptorProto.TYPE_MESSAGE, f".{PACKAGE}.{field.kind}"
    if field.choice:
        if not holder.oneof_decl:
            holder.oneof_decl.add(name="parameter_choice")
        added.oneof_index = 0


def _add_map(holder: DescriptorProto) -> None:
    """What a map is made of: entries of a key and a value."""
    entry = holder.nested_type.add(name="ParametersEntry")
    entry.options.map_entry = True
    optional, text = FieldDescriptorProto.LABEL_OPTIONAL, FieldDescriptorProto.TYPE_STRING
    entry.field.add(name="key", number=1, label=optional, type=text)
    value = entry.field.add(name="value", number=2, label=optional, type=FieldDescriptorProto.TYPE_MESSAGE)
    value.type_name = f".{PACKAGE}.InferParameter"


@cache
def _pool() -> DescriptorPool:
    file = FileDescriptorProto(name="deepfailguard/open_inference.proto", package=PACKAGE, syntax="proto3")
    made: dict[str, DescriptorProto] = {}
    for full_name, told in _MESSAGES.items():
        outer, _, name = full_name.rpartition(".")
        holder = made[outer].nested_type.add(name=name) if outer else file.message_type.add(name=name)
        made[full_name] = holder
        for field in _fields(told):
            _add_field(holder, full_name, field)
    pool = DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return pool


@cache
def message(name: str) -> Any:
    """The class of a message, by its name in the protocol.

    >>> message("ServerLiveResponse")(live=True).live
    True
    """
    return GetMessageClass(_pool().FindMessageTypeByName(f"{PACKAGE}.{name}"))
