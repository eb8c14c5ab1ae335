"""The Open Inference Protocol's bodies: what is understood, and what each mistake is told."""

import gzip
import json
import zlib
from typing import Any

import numpy as np
import pytest

from deepfailguard.serving import tensor_bodies
from deepfailguard.serving.answers import batch_of, part_of
from deepfailguard.serving.refusing import RefusedError
from deepfailguard.serving.tensor_bodies import LARGEST_JSON, decode_request, encode_response, unpacked
from deepfailguard.serving.tensors import OUTPUTS, input_tensors, output_tensors
from tests.serving_examples import GuardDouble, images_of

CARD = GuardDouble().card
IMAGES = images_of(2).numpy()


def tensor(**changes: Any) -> dict[str, Any]:
    whole = {"name": "images", "datatype": "FP32", "shape": [2, 1, 8, 8], "data": IMAGES.ravel().tolist()} | changes
    return {name: value for name, value in whole.items() if value is not None}


def body(content: Any = None, **changes: Any) -> bytes:
    return json.dumps({"inputs": [tensor()]} | changes if content is None else content).encode()


def binary(array: Any, header: dict[str, Any] | None = None, **changes: Any) -> tuple[bytes, str]:
    raw = array.tobytes()
    given = tensor(data=None, parameters={"binary_data_size": len(raw)}, **changes)
    told = json.dumps((header or {}) | {"inputs": [given]}).encode()
    return told + raw, str(len(told))


def refused(content: bytes, length: str | None = None) -> RefusedError:
    with pytest.raises(RefusedError) as error:
        decode_request(content, length, CARD)
    return error.value


@pytest.mark.parametrize("data", [IMAGES.ravel().tolist(), IMAGES.tolist()], ids=["flat", "nested"])
def test_json_numbers(data: Any) -> None:
    request = decode_request(body(inputs=[tensor(data=data)]), None, CARD)
    assert request.images.shape == (2, 1, 8, 8)
    assert np.array_equal(request.images.astype(np.float32), IMAGES)
    assert request.outputs == dict.fromkeys(OUTPUTS, False)


def test_whole_numbers_in_json_are_numbers() -> None:
    request = decode_request(body(inputs=[tensor(data=[0] * 128)]), None, CARD)
    assert request.images.dtype.kind == "f"


@pytest.mark.parametrize(("datatype", "dtype"), [("FP16", np.float16), ("FP32", np.float32), ("FP64", np.float64)])
def test_bytes_after_the_json(datatype: str, dtype: Any) -> None:
    content, length = binary(IMAGES.astype(dtype), datatype=datatype)
    request = decode_request(content, length, CARD)
    assert request.images.dtype == dtype
    assert np.array_equal(request.images, IMAGES.astype(dtype))


def test_outputs_are_those_that_are_wanted_in_the_form_that_is_wanted() -> None:
    wanted = [{"name": "labels"}, {"name": "weights", "parameters": {"binary_data": False}}]
    request = decode_request(body(outputs=wanted, parameters={"binary_data_output": True}), None, CARD)
    assert request.outputs == {"labels": True, "weights": False}
    assert decode_request(body(parameters={"binary_data_output": True}), None, CARD).outputs == dict.fromkeys(
        OUTPUTS, True
    )


def test_the_clients_time_is_in_microseconds() -> None:
    assert decode_request(body(parameters={"timeout": 250_000}), None, CARD).seconds == 0.25
    assert decode_request(body(parameters={"timeout": 0}), None, CARD).seconds is None
    assert decode_request(body(parameters={"anything": "else"}), None, CARD).seconds is None


MISTAKES = {
    "no json": (b"{", "expected JSON"),
    "not an object": (b"[]", "expected a JSON object, got a list"),
    "no inputs": (b"{}", "'inputs' to be a list of one object"),
    "two inputs": (body(inputs=[tensor(), tensor()]), "got 2 inputs"),
    "an input that is no object": (body(inputs=["images"]), "list of one object"),
    "another name": (body(inputs=[tensor(name="x")]), "an input named 'images', got 'x'"),
    "no shape": (body(inputs=[tensor(shape=None)]), r"the shape \[-1, 1, 8, 8\]"),
    "another shape": (body(inputs=[tensor(shape=[2, 3, 8, 8])]), r"of shape \[-1, 1, 8, 8\].*got \[2, 3, 8, 8\]"),
    "no batch dimension": (body(inputs=[tensor(shape=[1, 8, 8])]), "put a 1 before it"),
    "no image": (body(inputs=[tensor(shape=[0, 1, 8, 8], data=[])]), "one or more images"),
    "a negative batch": (body(inputs=[tensor(shape=[-1, 1, 8, 8])]), "one or more images"),
    "a batch beyond all bounds": (body(inputs=[tensor(shape=[1 << 62, 1, 8, 8])]), "one or more images"),
    "a shape of floats": (body(inputs=[tensor(shape=[2.0, 1, 8, 8])]), "whole numbers"),
    "a shape of truths": (body(inputs=[tensor(shape=[True, 1, 8, 8])]), "whole numbers"),
    "bytes as numbers": (body(inputs=[tensor(datatype="UINT8")]), "FP32, FP64, got 'UINT8'; divide whole numbers"),
    "texts as numbers": (body(inputs=[tensor(datatype="BYTES")]), "got 'BYTES'; send FP32"),
    "no datatype": (body(inputs=[tensor(datatype=None)]), "got None; send FP32"),
    "too few numbers": (body(inputs=[tensor(data=[0.5])]), "expected 128 numbers .* got 1"),
    "too few rows": (body(inputs=[tensor(data=IMAGES[:1].tolist())]), "expected 128 numbers .* got 1 values"),
    "too many numbers": (body(inputs=[tensor(data=[0.5] * 129)]), "expected 128 numbers .* got 129 values"),
    "numbers as rows": (body(inputs=[tensor(data=[0.5] * 2)]), "expected 128 numbers .* got 2"),
    "no numbers": (body(inputs=[tensor(data=None)]), "'data' to be a list of numbers, or binary_data_size"),
    "a text for numbers": (body(inputs=[tensor(data="0.5")]), "got a str"),
    "texts for numbers": (body(inputs=[tensor(data=["0.5"] * 128)]), "nothing but numbers"),
    "truths for numbers": (body(inputs=[tensor(data=[True] * 128)]), "nothing but numbers"),
    "nothing for numbers": (body(inputs=[tensor(data=[None] * 128)]), "nothing but numbers"),
    "rows of different lengths": (body(inputs=[tensor(data=[[1.0], [1.0, 2.0]])]), "flat or nested"),
    "shared memory": (body(inputs=[tensor(parameters={"shared_memory_region": "x"})]), "no shared memory"),
    "parameters that are none": (body(parameters=[]), "'parameters' to be a JSON object"),
    "an identity that is none": (body(id=7), "'id' to be a text"),
    "outputs that are none": (body(outputs="labels"), "'outputs' to be a list of objects"),
    "an output without a name": (body(outputs=[{}]), "to have a name"),
    "an unknown output": (body(outputs=[{"name": "logits"}]), "no output 'logits'; there are labels"),
    "an output twice": (body(outputs=[{"name": "labels"}, {"name": "labels"}]), "each output once"),
    "a class list": (body(outputs=[{"name": "labels", "parameters": {"classification": 3}}]), "no classification"),
    "a flag that is none": (body(parameters={"binary_data_output": "yes"}), "binary_data_output to be true or false"),
    "a time that is none": (body(parameters={"timeout": "soon"}), "timeout in microseconds"),
    "a sequence": (body(parameters={"sequence_id": 4}), "no sequences"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_is_told(mistake: str) -> None:
    content, text = MISTAKES[mistake]
    error = refused(content)
    assert error.status == 400
    with pytest.raises(RefusedError, match=text):
        raise error
    assert len(error.text) < 400


@pytest.mark.parametrize("length", ["-1", "x", "1e3", "99999", "", "9" * 40, "²"])
def test_a_wrong_header_length_is_told(length: str) -> None:
    content, _ = binary(IMAGES)
    assert "Inference-Header-Content-Length" in refused(content, length).text


def test_bytes_that_are_cut_off_or_too_many_are_told() -> None:
    content, length = binary(IMAGES)
    assert "binary_data_size to be the 511 bytes" in refused(content[:-1], length).text
    assert "binary_data_size to be the 513 bytes" in refused(content + b"x", length).text
    assert "binary_data_size to be the 0 bytes" in refused(content[: int(length)], None).text


def test_bytes_that_are_no_whole_number_of_values_are_told() -> None:
    content, length = binary(np.zeros(510, dtype=np.uint8))
    assert "no whole number of FP32" in refused(content, length).text
    content, length = binary(np.zeros(4, dtype=np.uint8))
    assert "expected 128 numbers" in refused(content, length).text


def test_a_deeply_nested_body_is_refused() -> None:
    assert refused(b'{"inputs": ' + b"[" * 5000 + b"]" * 5000 + b"}").status == 400
    nested: Any = 1.0
    for _ in range(100):  # more than numpy has dimensions
        nested = [nested]
    assert refused(body(inputs=[tensor(data=nested)])).status == 400


@pytest.mark.parametrize("compress", [gzip.compress, zlib.compress], ids=["gzip", "deflate"])
def test_compressed_bodies(compress: Any, request: pytest.FixtureRequest) -> None:
    name = "gzip" if compress is gzip.compress else "deflate"
    plain = body()
    assert unpacked(compress(plain), name, None, 1 << 20) == plain
    assert unpacked(plain, "identity", None, 1 << 20) == plain
    with pytest.raises(RefusedError, match="larger than 1000 bytes") as error:
        unpacked(compress(bytes(10_000_000)), name, None, 1000)
    assert error.value.status == 413
    with pytest.raises(RefusedError, match="ends too early"):
        unpacked(compress(plain)[:-9], name, None, 1 << 20)
    with pytest.raises(RefusedError, match=f"is no {name}"):
        unpacked(b"not packed", name, None, 1 << 20)
    with pytest.raises(RefusedError, match="plain, gzip or deflate") as error:
        unpacked(plain, "br", None, 1 << 20)
    assert error.value.status == 415


def test_json_is_bounded_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_bodies.orjson, "loads", lambda _: pytest.fail("it was read"))
    for content, length in ((bytes(LARGEST_JSON + 1), None), (bytes(LARGEST_JSON + 9), str(LARGEST_JSON + 1))):
        error = refused(content, length)
        assert error.status == 413
        assert f"at most {LARGEST_JSON} bytes of JSON, got {LARGEST_JSON + 1}; send images as binary data" in error.text


def test_json_is_bounded_while_it_is_unpacked() -> None:
    packed = gzip.compress(bytes(LARGEST_JSON + 1))
    with pytest.raises(RefusedError, match=f"larger than {LARGEST_JSON} bytes; send images as binary data") as error:
        unpacked(packed, "gzip", None, 32 << 20)
    assert error.value.status == 413
    assert len(unpacked(packed, "gzip", "100", 32 << 20)) == LARGEST_JSON + 1
    with pytest.raises(RefusedError, match=f"larger than {LARGEST_JSON} bytes; send fewer images"):
        unpacked(packed, "gzip", "100", LARGEST_JSON)


def test_bytes_may_be_more_than_json() -> None:
    count = LARGEST_JSON // (64 * 4) + 1
    content, length = binary(np.zeros((count, 1, 8, 8), np.float32), shape=[count, 1, 8, 8])
    assert len(content) > LARGEST_JSON
    assert len(decode_request(content, length, CARD).images) == count


def test_numbers_that_are_not_those_of_the_shape_are_not_made_an_array(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_bodies.np, "array", lambda _: pytest.fail("they were"))
    assert refused(body(inputs=[tensor(data=[0.5] * 1000)])).status == 400


def test_what_is_encoded_can_be_read_back() -> None:
    verdict = GuardDouble().guard(images_of(2))
    answer = part_of(batch_of(verdict), 0, 2)
    wanted = [{"name": name, "parameters": {"binary_data": name != "labels"}} for name in OUTPUTS]
    request = decode_request(body(outputs=wanted, id="seven"), None, CARD)
    content, length = encode_response(answer, request, "guard")
    assert length is not None
    told, rest = json.loads(content[:length]), content[length:]
    assert (told["id"], told["model_name"], told["model_version"]) == ("seven", "guard", "1")
    assert told["parameters"]["versions"] == "steady,noisy,odd"
    assert told["parameters"]["problems"] == "{}"
    dtypes = {"INT64": np.int64, "BOOL": np.bool_, "FP64": np.float64, "FP32": np.float32}
    for each in told["outputs"]:
        if each["name"] == "labels":
            values = np.array(each["data"])
        else:
            size = each["parameters"]["binary_data_size"]
            values, rest = np.frombuffer(rest[:size], dtypes[each["datatype"]]).reshape(each["shape"]), rest[size:]
        assert np.array_equal(values, answer.outputs[each["name"]], equal_nan=each["datatype"] == "FP32")
    assert rest == b""


def test_without_bytes_there_is_only_json() -> None:
    answer = part_of(batch_of(GuardDouble().guard(images_of(2))), 0, 2)
    content, length = encode_response(answer, decode_request(body(), None, CARD), "guard")
    assert length is None
    told = json.loads(content)
    assert "id" not in told
    assert [each["name"] for each in told["outputs"]] == list(OUTPUTS)
    assert told["outputs"][-1]["data"] == [None] * 6  # no distances were measured


def test_problems_are_told_with_their_positions() -> None:
    images = images_of(2)
    images[1] = float("inf")
    answer = part_of(batch_of(GuardDouble().guard(images)), 0, 2)
    told = json.loads(encode_response(answer, decode_request(body(), None, CARD), "guard")[0])
    problems = json.loads(told["parameters"]["problems"])
    assert list(problems) == ["1"]
    assert "NaN or outside" in problems["1"]


def test_metadata_are_what_is_answered() -> None:
    assert input_tensors(CARD) == [{"name": "images", "datatype": "FP32", "shape": [-1, 1, 8, 8]}]
    answer = part_of(batch_of(GuardDouble().guard(images_of(2))), 0, 2)
    dtypes = {"INT64": np.int64, "BOOL": np.bool_, "FP64": np.float64, "FP32": np.float32}
    for each in output_tensors(CARD):
        values = answer.outputs[each["name"]]
        assert values.dtype == dtypes[each["datatype"]]
        assert values.shape[1:] == tuple(each["shape"][1:])
