"""Over real sockets: bodies without end, clients that go away, TLS, and stopping without losing a request."""

import contextlib
import dataclasses
import datetime
import http.client
import io
import ipaddress
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest
import tritonclient.grpc
import tritonclient.http
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from PIL import Image
from tritonclient.utils import InferenceServerException

from deepfailguard.errors import ConfigurationError
from deepfailguard.serving import http_protocol, limits
from deepfailguard.serving.grpc_messages import SERVICE, message
from deepfailguard.serving.http_protocol import BoundedProtocol
from deepfailguard.serving.server import GuardServer, open_port
from deepfailguard.serving.settings import Listening, ServerSettings
from tests.serving_examples import GuardDouble, images_of, serving

SETTINGS = ServerSettings(deadline=30.0, largest_body=1 << 20)
MIB = 1 << 20


def memory() -> int:
    return int(psutil.Process().memory_info().rss)


def body(count: int = 1) -> dict[str, Any]:
    data = images_of(count).ravel().tolist()
    return {"inputs": [{"name": "images", "shape": [count, 1, 8, 8], "datatype": "FP32", "data": data}]}


def post(server: GuardServer, content: Any = None) -> httpx.Response:
    url = f"http://127.0.0.1:{server.port}/v2/models/guard/infer"
    return httpx.post(url, json=content or body(), timeout=60, verify=False)


def until(condition: Callable[[], object]) -> None:
    last = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < last, "it did not come to that"
        time.sleep(0.005)


def send_much(port: int, head: bytes, part: bytes, count: int) -> tuple[bytes, int]:
    """Send a head, then parts until there are enough or nobody takes more; what came back, and how many were taken."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(head)
        sent = 0
        try:
            for _ in range(count):
                connection.sendall(part)
                sent += 1
        except OSError:  # the server closed
            pass
        connection.setblocking(True)
        came = b""
        try:
            while received := connection.recv(65536):
                came += received
        except OSError:
            pass
    return came, sent


CHUNK = bytes(MIB)
ENDLESS = {
    "announced": (b"Content-Length: 1073741824\r\n\r\n", CHUNK),
    "in chunks": (b"Transfer-Encoding: chunked\r\n\r\n", b"100000\r\n" + CHUNK + b"\r\n"),
}


@pytest.mark.parametrize("path", ["/v2/models/guard/infer", "/predict", "/versions/swap"])
@pytest.mark.parametrize("kind", ENDLESS)
def test_a_gigabyte_is_refused_early_and_takes_no_memory(kind: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_LINGERING", 0.2)
    rest, part = ENDLESS[kind]
    types = {"/predict": b"image/png"}
    head = b"POST " + path.encode() + b" HTTP/1.1\r\nHost: x\r\nContent-Type: " + types.get(path, b"application/json")
    with serving(GuardDouble(), SETTINGS) as server:
        before = memory()
        came, _ = send_much(server.port, head + b"\r\n" + rest, part, 1024)
        grown = memory() - before
        assert post(server).status_code == 200
    assert came.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in came.lower()
    assert b"at most 1048576 bytes" in came
    assert grown < 64 * MIB


def test_a_client_that_waits_for_leave_is_told_before_it_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    """As curl does: it sends its head with Expect, and only after 100 Continue its body."""
    monkeypatch.setattr(limits, "_LINGERING", 0.2)
    with serving(GuardDouble(), SETTINGS) as server:
        head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nExpect: 100-continue\r\n"
        came, _ = send_much(server.port, head + b"Content-Length: 1073741824\r\n\r\n", b"", 0)
    assert came.startswith(b"HTTP/1.1 413 ")


def test_a_picture_of_a_hundred_million_pixels_takes_no_memory() -> None:
    stream = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(stream, "PNG")
    with serving(GuardDouble(), SETTINGS) as server:
        before = memory()
        url = f"http://127.0.0.1:{server.port}/predict"
        answer = httpx.post(url, content=stream.getvalue(), headers={"Content-Type": "image/png"}, timeout=60)
        grown = memory() - before
    assert answer.status_code == 413
    assert "at most 16000000 pixels" in answer.json()["error"]
    assert grown < 32 * MIB


def test_a_head_without_end_is_refused() -> None:
    with serving(GuardDouble(), SETTINGS) as server:
        before = memory()
        came, sent = send_much(server.port, b"GET / HTTP/1.1\r\nX-Long: ", bytes([97]) * 65536, 4096)
        assert memory() - before < 32 * MIB
    assert came.startswith(b"HTTP/1.1 400 ") or sent < 4096


def test_who_says_nothing_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "_HEAD_SECONDS", 0.05)
    with serving(GuardDouble(), SETTINGS) as server:
        for said in (b"", b"GET / HT"):
            came, _ = send_much(server.port, said, b"", 0)  # ends, as the server closes
            assert came == b""
        with httpx.Client() as client:
            assert client.get(f"http://127.0.0.1:{server.port}/v2/health/live").status_code == 200


@pytest.mark.parametrize("said", [b"", b"nonsense\r\n\r\n"], ids=["while it is written to", "while it is closed"])
def test_who_does_not_read_is_sent_away(
    said: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(http_protocol, "_UNREAD_SECONDS", 0.05)
    gone: list[BoundedProtocol] = []
    lost = BoundedProtocol.connection_lost

    def see(self: BoundedProtocol, exc: Exception | None) -> None:
        lost(self, exc)
        gone.append(self)

    monkeypatch.setattr(BoundedProtocol, "connection_lost", see)
    with serving(GuardDouble(), SETTINGS) as server, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect(("127.0.0.1", server.port))
        connection.settimeout(30)
        with contextlib.suppress(OSError):  # it may be over before all is asked
            connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 400 + said)
        until(lambda: gone)
        assert gone[0]._unread is None
        assert post(server).status_code == 200
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_what_is_no_http_is_refused() -> None:
    with serving(GuardDouble(), SETTINGS) as server:
        assert send_much(server.port, b"\x16\x03\x01 hello\r\n\r\n", b"", 0)[0].startswith(b"HTTP/1.1 400 ")


def test_what_a_client_did_not_wait_for_is_not_computed() -> None:
    double = GuardDouble()
    with serving(double, SETTINGS) as server:
        double.gate.clear()
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(post, server)
            assert double.started.wait(30)
            content = json.dumps(body(3)).encode()
            leaving = http.client.HTTPConnection("127.0.0.1", server.port)
            leaving.request("POST", "/v2/models/guard/infer", content, {"Content-Type": "application/json"})
            until(lambda: server.service.batcher.images_waiting == 3)
            leaving.close()
            until(lambda: server.service.batcher.images_waiting == 0)
            double.gate.set()
            assert first.result(30).status_code == 200
    assert double.batches == [1]


def test_a_full_queue_says_when_to_come_again() -> None:
    double = GuardDouble()
    settings = dataclasses.replace(SETTINGS, max_batch=4, queue=4)
    with serving(double, settings) as server, ThreadPoolExecutor(8) as pool:
        double.gate.clear()
        waiting = [pool.submit(post, server)]
        assert double.started.wait(30)
        waiting.append(pool.submit(post, server, body(4)))  # is made ready
        until(lambda: server.service.batcher.requests == 2)
        waiting.append(pool.submit(post, server, body(4)))
        until(lambda: server.service.batcher.images_waiting == 4)
        refused = post(server)
        double.gate.set()
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert [each.result(30).status_code for each in waiting] == [200, 200, 200]


def test_many_clients_at_once_get_their_own_answers() -> None:
    double = GuardDouble()
    with serving(double, SETTINGS) as server, ThreadPoolExecutor(16) as pool:

        def ask(seed: int) -> bool:
            images = images_of(1 + seed % 5, seed)
            content = body(len(images))
            content["inputs"][0]["data"] = images.ravel().tolist()
            told = {each["name"]: each["data"] for each in post(server, content).json()["outputs"]}
            return bool(told["labels"] == double.guard(images).labels.tolist())

        assert all(pool.map(ask, range(120)))
    assert sum(double.batches) == sum(1 + seed % 5 for seed in range(120))


@pytest.mark.parametrize("by", ["http", "grpc"])
def test_stopping_answers_what_was_accepted_and_nothing_else(by: str) -> None:
    double = GuardDouble()
    listening = Listening(port=0, grpc_port=0)
    with serving(double, dataclasses.replace(SETTINGS, max_batch=2), listening) as server:
        module = getattr(tritonclient, by)
        client = module.InferenceServerClient(f"127.0.0.1:{server.port if by == 'http' else server.grpc_port}")

        def ask() -> int:
            own = module.InferenceServerClient(f"127.0.0.1:{server.port if by == 'http' else server.grpc_port}")
            tensor = module.InferInput("images", [1, 1, 8, 8], "FP32")
            tensor.set_data_from_numpy(images_of(1).numpy())
            told = len(own.infer("guard", [tensor]).as_numpy("labels"))
            own.close()
            return told

        double.gate.clear()
        with ThreadPoolExecutor(9) as pool:
            accepted = [pool.submit(ask) for _ in range(9)]
            until(lambda: server.service.batcher.requests == 9)
            assert client.is_server_ready()
            server.stop()
            until(lambda: server.service.door.closing)
            if by == "http":
                assert not client.is_server_ready()
                refused = post(server)
                assert refused.status_code == 503
                assert refused.headers["connection"] == "close"
            else:
                with pytest.raises(InferenceServerException):
                    ask()
            double.gate.set()
            assert [each.result(30) for each in accepted] == [1] * 9
        client.close()
    with pytest.raises(httpx.ConnectError):
        post(server)


def test_stopping_does_not_wait_for_ever() -> None:
    double = GuardDouble()
    server = GuardServer(double, dataclasses.replace(SETTINGS, drain_seconds=0.1), Listening(port=0, grpc_port=None))
    ended: list[bool] = []
    thread = threading.Thread(target=lambda: ended.append(server.run()))
    thread.start()
    assert server.started.wait(30)
    double.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        lost = pool.submit(post, server)
        assert double.started.wait(30)
        server.stop()
        thread.join(30)
        double.gate.set()
        assert lost.result(30).status_code == 503
        assert "shutting down" in lost.result(30).json()["error"]
    assert ended == [False]


def test_a_port_that_is_taken_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"cannot listen on 127.0.0.1:{port}: .*choose another port"):
            open_port("127.0.0.1", port)
        server = GuardServer(GuardDouble(), SETTINGS, Listening(port=0, grpc_port=port))
        with pytest.raises(ConfigurationError, match=f"cannot listen on 127.0.0.1:{port}"):
            server.run()
    with pytest.raises(ConfigurationError, match=r"cannot listen on nowhere\.invalid:0"):
        open_port("nowhere.invalid", 0)


KEY = "a-key-for-clients"


def test_grpc_needs_the_key_too() -> None:
    module = tritonclient.grpc
    with serving(GuardDouble(), dataclasses.replace(SETTINGS, key=KEY), Listening(port=0, grpc_port=0)) as server:
        client = module.InferenceServerClient(f"127.0.0.1:{server.grpc_port}")
        assert client.is_server_live()
        assert client.is_server_ready()
        for headers in (None, {"x-api-key": "not-the-right-key"}):
            with pytest.raises(InferenceServerException, match="key") as error:
                client.get_model_metadata("guard", headers=headers)
            assert error.value.status() == "StatusCode.UNAUTHENTICATED"
        for headers in ({"x-api-key": KEY}, {"authorization": f"Bearer {KEY}"}):
            assert client.get_model_metadata("guard", headers=headers).name == "guard"
        client.close()


@contextlib.contextmanager
def channel_of(settings: ServerSettings) -> Iterator[Any]:
    """gRPC to a server, without a client that checks what is sent."""
    with (
        serving(GuardDouble(), settings, Listening(port=0, grpc_port=0)) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        yield channel


def unsent(sent: threading.Event) -> Iterator[bytes]:
    """A message that does not come."""
    assert sent.wait(60)
    yield b""


def test_grpc_reads_no_message_without_the_key() -> None:
    never = threading.Event()
    with channel_of(dataclasses.replace(SETTINGS, key=KEY)) as channel:
        for name in ("ModelInfer", "NoSuchMethod"):
            with pytest.raises(grpc.RpcError) as error:
                channel.stream_unary(f"/{SERVICE}/{name}")(unsent(never), timeout=30)
            assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED
        never.set()
        ready = channel.unary_unary(f"/{SERVICE}/ServerReady", None, message("ServerReadyResponse").FromString)
        assert ready(b"", timeout=30).ready


def test_grpc_takes_as_many_calls_as_a_client_may_make_and_a_few() -> None:
    with channel_of(dataclasses.replace(SETTINGS, per_client=2)) as channel:
        live, never = channel.unary_unary(f"/{SERVICE}/ServerLive"), threading.Event()

        def full() -> bool:
            try:
                live(b"", timeout=30)
            except grpc.RpcError as error:
                return bool(error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED)
            return False

        infer = channel.stream_unary(f"/{SERVICE}/ModelInfer")
        waiting = [infer.future(unsent(never)) for _ in range(17)]
        assert not full()
        waiting.append(infer.future(unsent(never)))
        until(full)
        for each in waiting:
            each.cancel()
        never.set()
        until(lambda: not full())


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a guard")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "certificate.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "certificate.pem", folder / "key.pem"


def test_tls_by_http_and_grpc(certificate: tuple[Path, Path]) -> None:
    listening = Listening(port=0, grpc_port=0, certificate=certificate[0], private_key=certificate[1])
    with serving(GuardDouble(), SETTINGS, listening) as server:
        url = f"https://127.0.0.1:{server.port}/v2/models/guard/infer"
        context = ssl.create_default_context(cafile=str(certificate[0]))
        assert httpx.post(url, json=body(), verify=context, timeout=60).status_code == 200
        with pytest.raises(httpx.ConnectError):  # of an authority that nobody knows
            httpx.post(url, json=body(), timeout=60)
        with pytest.raises(httpx.HTTPError):
            post(server)
        credentials = grpc.ssl_channel_credentials(certificate[0].read_bytes())
        client = tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}", ssl=True, creds=credentials)
        assert client.is_model_ready("guard")
        client.close()
