"""The clients that people have work unchanged, by HTTP and by gRPC."""

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

import deepfailguard
from deepfailguard.serving.server import GuardServer
from deepfailguard.serving.settings import Listening, ServerSettings
from deepfailguard.serving.tensors import OUTPUTS
from tests.serving_examples import GuardDouble, images_of, serving

SETTINGS = ServerSettings(model_name="bars", max_batch=16, deadline=30.0, largest_body=1 << 20)


class Running(NamedTuple):
    double: GuardDouble
    server: GuardServer


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    double = GuardDouble()
    with serving(double, SETTINGS, Listening(port=0, grpc_port=0)) as server:
        yield Running(double, server)


class Client(NamedTuple):
    module: Any
    inner: Any
    double: GuardDouble

    def images(self, array: Any, datatype: str = "FP32", **more: Any) -> Any:
        tensor = self.module.InferInput("images", list(array.shape), datatype)
        tensor.set_data_from_numpy(array, **more)
        return tensor

    def ask(self, array: Any, datatype: str = "FP32", **more: Any) -> Any:
        return self.inner.infer("bars", [self.images(array, datatype)], **more)


@pytest.fixture(params=["http", "grpc"])
def client(request: pytest.FixtureRequest, running: Running) -> Iterator[Client]:
    module = getattr(tritonclient, request.param)
    port = running.server.port if request.param == "http" else running.server.grpc_port
    inner = module.InferenceServerClient(f"127.0.0.1:{port}")
    yield Client(module, inner, running.double)
    inner.close()


def until(condition: Callable[[], bool]) -> None:
    last = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < last, "it did not come to that"
        time.sleep(0.01)


def as_dict(told: Any) -> Any:
    return told if isinstance(told, dict) else {field.name: value for field, value in told.ListFields()}


def test_the_server_tells_what_it_is(client: Client) -> None:
    assert client.inner.is_server_live()
    assert client.inner.is_server_ready()
    told = as_dict(client.inner.get_server_metadata())
    assert (told["name"], told["version"]) == ("deepfailguard", deepfailguard.__version__)
    assert list(told["extensions"]) == ["binary_tensor_data"]


@pytest.mark.parametrize("version", ["", "1"])
def test_the_model_tells_what_it_is(client: Client, version: str) -> None:
    assert client.inner.is_model_ready("bars", version)
    told = as_dict(client.inner.get_model_metadata("bars", version))
    assert told["name"] == "bars"
    assert list(told["versions"]) == ["1"]
    (given,) = [as_dict(each) for each in told["inputs"]]
    assert (given["name"], given["datatype"], list(given["shape"])) == ("images", "FP32", [-1, 1, 8, 8])
    outputs = {as_dict(each)["name"]: as_dict(each) for each in told["outputs"]}
    assert list(outputs) == list(OUTPUTS)
    assert list(outputs["probabilities"]["shape"]) == [-1, 3]
    assert {name: each["datatype"] for name, each in outputs.items()} == OUTPUTS


def test_answers_are_those_of_the_guard(client: Client) -> None:
    images = images_of(5)
    answer, expected = client.ask(images.numpy(), request_id="seven"), client.double.guard(images)
    for name in OUTPUTS:
        if name != "distance":
            told = answer.as_numpy(name)
            assert told.dtype == getattr(expected, name).numpy().dtype
            assert np.array_equal(told, getattr(expected, name)), name
    assert np.isnan(answer.as_numpy("distance")).all()  # none was measured
    assert as_dict(answer.get_response())["id"] == "seven"


def test_a_long_request_is_one_answer(client: Client) -> None:
    images = images_of(50)
    assert np.array_equal(client.ask(images.numpy()).as_numpy("labels"), client.double.guard(images).labels)


def test_only_the_wanted_outputs_come(client: Client) -> None:
    wanted = [client.module.InferRequestedOutput("weights"), client.module.InferRequestedOutput("labels")]
    answer = client.ask(images_of(2).numpy(), outputs=wanted)
    assert [as_dict(each)["name"] for each in as_dict(answer.get_response())["outputs"]] == ["weights", "labels"]
    assert answer.as_numpy("weights").shape == (2, 3)
    assert answer.as_numpy("probabilities") is None


@pytest.mark.parametrize(("datatype", "dtype"), [("FP16", np.float16), ("FP64", np.float64)])
def test_other_floats_are_cast(client: Client, datatype: str, dtype: Any) -> None:
    images = images_of(3).numpy().astype(dtype)
    expected = client.double.guard(torch.from_numpy(images.astype(np.float32)))
    assert np.array_equal(client.ask(images, datatype).as_numpy("labels"), expected.labels)


def test_a_missing_version_and_bad_images_are_told_in_parameters(client: Client) -> None:
    images = images_of(3)
    images[1, 0, 0, 0] = float("nan")
    client.double.set_aside("noisy", "a test")
    try:
        answer = client.ask(images.numpy())
    finally:
        client.double.release("noisy")
    parameters = as_dict(answer.get_response())["parameters"]
    told = {
        name: value if isinstance(value, (str, bool)) else next(each for _, each in value.ListFields())
        for name, value in parameters.items()
    }
    assert told["degraded"] is True
    assert told["ground"] == "versions left"
    assert told["versions"] == "steady,noisy,odd"
    assert list(json.loads(told["problems"])) == ["1"]
    assert (answer.as_numpy("version_labels")[:, 1] == -1).all()
    assert answer.as_numpy("labels").tolist()[1] == -1


WRONG = {
    "whole numbers": (np.zeros((2, 1, 8, 8), np.uint8), "UINT8", "divide whole numbers"),
    "texts": (np.full((2, 1, 8, 8), b"x", object), "BYTES", "send FP32"),
    "channels": (np.zeros((2, 3, 8, 8), np.float32), "FP32", "of shape"),
    "dimensions": (np.zeros((1, 8, 8), np.float32), "FP32", "put a 1 before it"),
    "no image": (np.zeros((0, 1, 8, 8), np.float32), "FP32", "one or more"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_with_a_tensor_is_told(client: Client, wrong: str) -> None:
    array, datatype, text = WRONG[wrong]
    with pytest.raises(InferenceServerException, match=text) as error:
        client.ask(array, datatype)
    assert error.value.status() in ("400", "StatusCode.INVALID_ARGUMENT")


def test_unknown_names_are_told(client: Client) -> None:
    for ask in (
        lambda: client.inner.infer("cats", [client.images(images_of(1).numpy())]),
        lambda: client.inner.infer("bars", [client.images(images_of(1).numpy())], model_version="2"),
        lambda: client.inner.get_model_metadata("cats"),
    ):
        with pytest.raises(InferenceServerException, match=r"there is no model 'cats'|has no version '2'") as error:
            ask()
        assert error.value.status() in ("404", "StatusCode.NOT_FOUND")
    with pytest.raises(InferenceServerException, match="no output 'logits'"):
        client.ask(images_of(1).numpy(), outputs=[client.module.InferRequestedOutput("logits")])


def test_a_request_that_is_too_large_is_refused(client: Client) -> None:
    with pytest.raises(InferenceServerException) as error:
        client.ask(np.zeros((5000, 1, 8, 8), np.float32))
    assert error.value.status() in ("413", "StatusCode.RESOURCE_EXHAUSTED")


def test_a_request_of_too_many_images_is_refused(client: Client) -> None:
    with pytest.raises(InferenceServerException, match="at most 1024 images") as error:
        client.ask(np.zeros((1100, 1, 8, 8), np.float32))
    assert error.value.status() in ("413", "StatusCode.RESOURCE_EXHAUSTED")


def test_the_clients_own_time_is_kept(client: Client) -> None:
    client.double.gate.clear()
    try:
        with pytest.raises(InferenceServerException, match=r"within the deadline|Deadline") as error:
            client.ask(images_of(1).numpy(), timeout=50_000)
    finally:
        client.double.gate.set()
    assert error.value.status() in ("504", "StatusCode.DEADLINE_EXCEEDED")


def test_json_tensors_both_ways(running: Running) -> None:
    """Only HTTP has them."""
    http, images = tritonclient.http, images_of(3)
    client = Client(http, http.InferenceServerClient(f"127.0.0.1:{running.server.port}"), running.double)
    tensor = client.images(images.numpy(), binary_data=False)
    wanted = [http.InferRequestedOutput(name, binary_data=name == "weights") for name in OUTPUTS]
    answer, expected = client.inner.infer("bars", [tensor], outputs=wanted), running.double.guard(images)
    for name in OUTPUTS:
        if name != "distance":
            assert np.array_equal(answer.as_numpy(name), getattr(expected, name)), name
    assert np.isnan(answer.as_numpy("distance")).all()
    client.inner.close()


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests(running: Running, algorithm: str) -> None:
    http, images = tritonclient.http, images_of(3)
    client = Client(http, http.InferenceServerClient(f"127.0.0.1:{running.server.port}"), running.double)
    answer = client.ask(images.numpy(), request_compression_algorithm=algorithm)
    assert np.array_equal(answer.as_numpy("labels"), running.double.guard(images).labels)
    client.inner.close()


def test_a_guard_without_quorum_is_not_ready(client: Client) -> None:
    client.double.least_versions = 4
    try:
        until(lambda: not client.inner.is_server_ready())  # what the server knows is 0.2 s old at most
        assert not client.inner.is_model_ready("bars")
        assert client.inner.is_server_live()
    finally:
        client.double.least_versions = 1


def test_a_full_server_says_so() -> None:
    double, settings = GuardDouble(), dataclasses.replace(SETTINGS, per_client=1)
    with serving(double, settings, Listening(port=0, grpc_port=0)) as server:
        grpc = tritonclient.grpc
        client = Client(grpc, grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}"), double)
        double.gate.clear()
        answers: list[Any] = []
        tensor = client.images(images_of(1).numpy())
        client.inner.async_infer("bars", [tensor], lambda result, error: answers.append((result, error)))
        try:
            assert double.started.wait(30)
            with pytest.raises(InferenceServerException, match="already waits for 1 answers") as error:
                client.ask(images_of(1).numpy())
            assert error.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
        finally:
            double.gate.set()
        until(lambda: bool(answers))
        client.ask(images_of(1).numpy())
        client.inner.close()
    ((result, failed),) = answers
    assert failed is None
    assert len(result.as_numpy("labels")) == 1
