"""Our messages are the protocol's: the same fields, and the same bytes, as those that a client was generated from."""

from typing import Any

import pytest
from tritonclient.grpc import service_pb2

from deepfailguard.serving.grpc_messages import METHODS, SERVICE, message

NAMES = [f"{method}{kind}" for method in METHODS for kind in ("Request", "Response")]


def fields(descriptor: Any) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for field in descriptor.fields:
        inner = fields(field.message_type) if field.message_type is not None else None
        one_of = field.containing_oneof.name if field.containing_oneof is not None else None
        told[field.name] = (field.number, field.type, field.is_repeated, one_of, inner)
    return told


@pytest.mark.parametrize("name", NAMES)
def test_fields_are_the_protocols(name: str) -> None:
    theirs = service_pb2.DESCRIPTOR.message_types_by_name[name]
    ours = message(name).DESCRIPTOR
    assert ours.full_name == theirs.full_name
    assert fields(ours) == fields(theirs)
    assert ours.file.pool is not theirs.file.pool


def test_methods_are_the_protocols() -> None:
    (theirs,) = service_pb2.DESCRIPTOR.services_by_name.values()
    assert theirs.full_name == SERVICE
    for name in METHODS:
        method = theirs.methods_by_name[name]
        assert method.input_type.full_name == f"inference.{name}Request"
        assert method.output_type.full_name == f"inference.{name}Response"


def test_bytes_go_both_ways() -> None:
    ours = message("ModelInferRequest")(model_name="guard", id="7", raw_input_contents=[b"abc"])
    ours.parameters["timeout"].int64_param = 5
    ours.inputs.add(name="images", datatype="FP32", shape=[1, 2]).contents.fp32_contents.extend([0.5, 1.5])
    theirs = service_pb2.ModelInferRequest.FromString(ours.SerializeToString())
    assert theirs.parameters["timeout"].int64_param == 5
    assert list(theirs.inputs[0].contents.fp32_contents) == [0.5, 1.5]
    back = message("ModelInferRequest").FromString(theirs.SerializeToString())
    assert back == ours
