"""What `deepfailguard serve` refuses, in one line and before anything is loaded; and what it passes on."""

import argparse
import logging
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from deepfailguard.cli import serve
from deepfailguard.cli.main import main
from deepfailguard.runtime.runners.ray_replica import ReplicaSettings
from deepfailguard.runtime.settings import Settings
from deepfailguard.serving import ray_app, server
from deepfailguard.serving.guard_worker import GuardOrder
from deepfailguard.serving.settings import Listening, ServerSettings

HERE = ["--port", "0", "--grpc-port", "0"]


@pytest.fixture
def no_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "GuardProcess", lambda *_: pytest.fail("a guard was loaded"))


@pytest.fixture(autouse=True)
def own_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    for name in ("DEEPFAILGUARD_KEY", "DEEPFAILGUARD_ADMIN_KEY"):
        monkeypatch.delenv(name, raising=False)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    status = main(["serve", *arguments])
    told = capsys.readouterr().err
    assert told.startswith("deepfailguard serve: ")
    assert len(told.splitlines()) == 1
    return status, told


@pytest.mark.usefixtures("no_loading")
def test_a_folder_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, told = refused(capsys, str(tmp_path / "nothing"))
    assert status == 2
    assert "there is no folder" in told


def test_a_folder_that_holds_no_guard(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, told = refused(capsys, str(tmp_path), *HERE)
    assert status == 2
    assert "holds no guard" in told


@pytest.mark.usefixtures("no_loading")
@pytest.mark.parametrize("option", ["--port", "--grpc-port"])
def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str], tmp_path: Path, option: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, told = refused(capsys, str(tmp_path), *HERE, option, str(port))
    assert status == 2
    assert f"cannot listen on 127.0.0.1:{port}" in told


@pytest.mark.usefixtures("no_loading")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, told = refused(capsys, str(tmp_path), *HERE, "--device", "cuda")
    assert status == 2
    assert "device 'cuda' cannot be used here" in told


@pytest.mark.usefixtures("no_loading")
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--deadline", "0"], "deadline must be"),
        (["--max-batch", "0"], "max_batch must be >= 1"),
        (["--max-batch", "4000"], "shorter than a batch"),
        (["--least-versions", "0"], "least_versions must be >= 1"),
        (["--tls-key", "key.pem"], "both a certificate and its private key"),
        (["--key-file", "nothing.txt"], "cannot be read"),
        (["--name", "a b"], "model_name must be"),
        (["--engine", "ray", "--standby", "a"], "--standby works with --engine local"),
        (["--engine", "ray", "--replicas", "0"], "at least 1 replica"),
        (["--replica-gpus", "0.5"], "--replica-gpus works with --engine ray alone"),
    ],
)
def test_settings_that_cannot_work(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], text: str
) -> None:
    status, told = refused(capsys, str(tmp_path), *HERE, *arguments)
    assert (status, text in told) == (2, True), told


@pytest.mark.usefixtures("no_loading")
def test_keys_that_are_no_keys(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "key.txt"
    file.write_text("\n")
    assert "it is empty" in refused(capsys, str(tmp_path), *HERE, "--key-file", str(file))[1]
    monkeypatch.setenv("DEEPFAILGUARD_ADMIN_KEY", "short")
    told = refused(capsys, str(tmp_path), *HERE)[1]
    assert "admin_key must have at least 16" in told
    assert "short" not in told


def test_keys_are_never_arguments() -> None:
    parser = argparse.ArgumentParser()
    serve.add_serve(parser.add_subparsers())
    with pytest.raises(SystemExit):
        parser.parse_args(["serve", "guard", "--key", "secret"])
    with pytest.raises(SystemExit):
        parser.parse_args(["serve", "guard", "--admin-key", "secret"])


class Given:
    """What a server and its guard were started with."""

    order: GuardOrder
    closed: bool = False
    settings: ServerSettings
    listening: Listening


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Given:
    """A guard that is none, and a server that ends at once."""
    told = Given()

    class Guard:
        def __init__(self, order: GuardOrder) -> None:
            told.order = order

        def __enter__(self) -> "Guard":
            return self

        def __exit__(self, *_: object) -> None:
            told.closed = True

    class Recorder:
        def __init__(self, runtime: Any, settings: ServerSettings, listening: Listening, http_socket: Any) -> None:
            assert isinstance(runtime, Guard)
            told.settings, told.listening = settings, listening
            assert http_socket.getsockname()[1] > 0

        def run(self) -> bool:
            return True

    monkeypatch.setattr(server, "GuardServer", Recorder)
    monkeypatch.setattr(serve, "GuardProcess", Guard)
    monkeypatch.setattr(serve, "freeze_objects", lambda: None)  # it is for this process's whole life
    monkeypatch.setattr(sys, "setswitchinterval", lambda _: None)
    return told


def test_options_reach_the_guard_and_the_server(given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = tmp_path / "key.txt"
    key.write_text("a-key-for-clients\n")
    monkeypatch.setenv("DEEPFAILGUARD_ADMIN_KEY", "a-key-for-operators")
    arguments = ["--deadline", "0.5", "--max-batch", "16", "--max-wait-ms", "1", "--queue", "100", "--name", "bars"]
    arguments += ["--key-file", str(key), "--least-versions", "2", "--standby", "odd", "--trusted", "mine"]
    arguments += ["--state", "state", "--isolation", "in-process", "--host", "127.0.0.1", "--drain-seconds", "3"]
    assert main(["serve", str(tmp_path), "--port", "0", "--grpc-port", "-1", *arguments]) == 0
    settings = given.settings
    assert (settings.deadline, settings.max_batch, settings.max_wait, settings.queue) == (0.5, 16, 0.001, 100)
    assert (settings.model_name, settings.key, settings.admin_key) == (
        "bars",
        "a-key-for-clients",
        "a-key-for-operators",
    )
    assert settings.drain_seconds == 3
    assert given.listening == Listening(port=0, grpc_port=None)
    assert given.order == GuardOrder(
        tmp_path,
        device="cpu",
        trusted=("deepfailguard", "mymodel", "mine"),
        isolation="in process",
        settings=Settings(deadline=0.2, least_versions=2, standby=("odd",)),
        state=Path("state"),
    )
    assert given.closed


@pytest.mark.usefixtures("no_loading")
def test_ray_gets_the_same_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(ray_app, "serve_on_ray", lambda *arguments: told.extend(arguments))
    arguments = [
        "--engine",
        "ray",
        "--ray-address",
        "auto",
        "--deadline",
        "0.7",
        "--version-deadline",
        "0.1",
        "--least-versions",
        "2",
        "--replicas",
        "3",
        "--replica-gpus",
        "0.5",
    ]
    assert main(["serve", str(tmp_path), *HERE, *arguments]) == 0
    guard, listening, address = told
    assert guard.folder == tmp_path
    assert (guard.server.deadline, guard.runtime.deadline, guard.runtime.least_versions) == (0.7, 0.1, 2)
    assert guard.replicas == ReplicaSettings(replicas=3, gpus=0.5)
    assert listening == Listening(port=0, grpc_port=0)
    assert address == "auto"


def test_a_command_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    assert "COMMAND" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--help"])
    assert ended.value.code == 0
    assert "never from" in capsys.readouterr().out
