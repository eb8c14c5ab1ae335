"""The routes, without sockets: pictures, health, metrics, changes of versions, and what mistakes are told."""

import asyncio
import dataclasses
import io
import json
import re
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from deepfailguard.errors import GuardLostError
from deepfailguard.serving import pictures
from deepfailguard.serving.app import create_app, service_of
from deepfailguard.serving.batching import Batcher
from deepfailguard.serving.settings import ServerSettings
from tests.serving_examples import CLASS_NAMES, GuardDouble, images_of

ADMIN = "a-key-for-operators"
SETTINGS = ServerSettings(deadline=30.0, admin_key=ADMIN)
AS_ADMIN = {"X-API-Key": ADMIN}


def png(size: tuple[int, int] = (8, 8)) -> bytes:
    pixels = (images_of(1)[0, 0].numpy() * 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(stream, "PNG")
    return stream.getvalue()


Talk = Callable[[httpx.AsyncClient], Awaitable[Any]]


def talk(work: Talk, double: GuardDouble | None = None, settings: ServerSettings = SETTINGS) -> Any:
    """Everything that a client and a fresh application say to one another."""

    async def whole() -> Any:
        app = create_app(double or GuardDouble(), settings)
        transport = httpx.ASGITransport(app)
        try:
            async with httpx.AsyncClient(transport=transport, base_url="http://guard", timeout=60) as client:
                return await work(client)
        finally:
            service_of(app).close()

    return asyncio.run(whole())


def one(
    method: str, path: str, double: GuardDouble | None = None, settings: ServerSettings = SETTINGS, **more: Any
) -> Any:
    response = talk(lambda client: client.request(method, path, **more), double, settings)
    assert response.headers["content-type"].startswith(("application/json", "text/", "application/octet-stream"))
    if response.status_code >= 400 and not (path == "/health" or path.endswith("/ready")):
        assert isinstance(response.json()["error"], str)
    return response


@pytest.mark.parametrize("as_form", [True, False])
def test_a_picture_is_answered_and_explained(as_form: bool) -> None:
    how: dict[str, Any] = {"content": png(), "headers": {"Content-Type": "image/png"}}
    if as_form:
        how = {"files": {"file": ("a.png", png(), "image/png")}}
    double = GuardDouble()
    told = one("POST", "/predict", double, **how).json()
    pixels = (images_of(1) * 255).floor() / 255
    verdict = double.guard(pixels)
    assert told["label"] == int(verdict.labels[0])
    assert told["class"] == CLASS_NAMES[told["label"]]
    assert told["failure_probability"] == pytest.approx(float(verdict.failure_probability[0]))
    assert told["explanation"].splitlines()[0] == verdict.explain(0).splitlines()[0]
    assert told["probabilities"] == pytest.approx(
        dict(zip(CLASS_NAMES, verdict.probabilities[0].tolist(), strict=True))
    )
    assert [each["name"] for each in told["versions"]] == list(double.card.names)
    assert sum(each["weight"] for each in told["versions"]) == pytest.approx(1.0)
    assert told["versions"][0]["distance"] is None
    assert told["resized_from"] is None
    assert told["degraded"] is False
    assert told["ground"] == "all versions"
    assert told["seconds"] > 0


def test_a_picture_of_another_size_is_resized_and_that_is_told() -> None:
    told = one("POST", "/predict", content=png((30, 20)), headers={"Content-Type": "image/png"}).json()
    assert told["resized_from"] == [30, 20]


def test_a_version_that_is_set_aside_is_shown_as_such() -> None:
    double = GuardDouble()
    double.set_aside("odd", "it looks sick")
    told = one("POST", "/predict", double, content=png(), headers={"Content-Type": "image/png"}).json()
    odd = told["versions"][2]
    assert (odd["state"], odd["label"], odd["class"]) == ("quarantined", -1, "no answer")
    assert odd["problem"] == "it looks sick"
    assert odd["weight"] == 0.0
    assert told["degraded"] is True
    assert told["ground"] == "versions left"
    assert "does not count: it looks sick" in told["explanation"]


PICTURE_MISTAKES: dict[str, tuple[dict[str, Any], int, str]] = {
    "another type": ({"content": png(), "headers": {"Content-Type": "text/plain"}}, 415, "-F file=@picture.png"),
    "curl's own type": ({"data": {"a": "b"}}, 415, "multipart/form-data"),
    "no type": ({"content": png()}, 415, "expected an image"),
    "nothing": ({"content": b"", "headers": {"Content-Type": "image/png"}}, 400, "got nothing"),
    "no picture": ({"content": b"hello", "headers": {"Content-Type": "image/png"}}, 400, "these 5 bytes are none"),
    "cut off": ({"content": png()[:60], "headers": {"Content-Type": "image/png"}}, 400, "damaged or cut off"),
    "another field": ({"files": {"image": ("a.png", png(), "image/png")}}, 400, "a file in the field 'file'"),
    "a text": ({"files": {"file": (None, "hello")}}, 400, "a file in the field 'file'"),
    "two files": ({"files": [("file", ("a", png())), ("file", ("b", png()))]}, 400, "Too many files"),
    "no boundary": ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 400, "boundary"),
    "a broken form": (
        {"content": b"--x\r\nnonsense", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
        400,
        "",
    ),
}


@pytest.mark.parametrize("mistake", PICTURE_MISTAKES)
def test_mistakes_with_pictures_are_told(mistake: str) -> None:
    how, status, text = PICTURE_MISTAKES[mistake]
    response = one("POST", "/predict", **how)
    assert (response.status_code, text in response.json()["error"]) == (status, True), response.text


def test_a_large_picture_is_refused() -> None:
    settings = dataclasses.replace(SETTINGS, largest_pixels=100)
    response = one("POST", "/predict", None, settings, content=png((30, 20)), headers={"Content-Type": "image/png"})
    assert response.status_code == 413
    assert "at most 100 pixels, got 30 x 20" in response.json()["error"]


def test_a_picture_that_is_not_decoded_in_time_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, double = threading.Event(), GuardDouble()
    monkeypatch.setattr(pictures, "decoded", lambda *_: gate.wait(60))
    settings = dataclasses.replace(SETTINGS, deadline=0.05)
    response = one("POST", "/predict", double, settings, content=png(), headers={"Content-Type": "image/png"})
    gate.set()
    assert response.status_code == 504
    assert response.headers["retry-after"] == "1"
    assert "not decoded within the deadline of 0.05 s" in response.json()["error"]
    assert double.batches == []


def test_what_decoding_took_is_not_left_for_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float | None] = []
    infer = Batcher.infer

    async def told(self: Batcher, images: Any, client: str, seconds: float | None = None, gone: Any = None) -> Any:
        given.append(seconds)
        return await infer(self, images, client, seconds, gone)

    monkeypatch.setattr(Batcher, "infer", told)
    assert one("POST", "/predict", content=png(), headers={"Content-Type": "image/png"}).status_code == 200
    assert [seconds is not None and 0 < seconds < SETTINGS.deadline for seconds in given] == [True]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "image/png"])
def test_tensors_of_another_type_are_refused(kind: str) -> None:
    response = one("POST", "/v2/models/guard/infer", content=b"{}", headers={"Content-Type": kind})
    assert response.status_code == 415
    assert "set Content-Type" in response.json()["error"]


def test_unknown_pages_and_methods_are_told() -> None:
    assert "no such page" in one("GET", "/v3").json()["error"]
    assert one("GET", "/v3").status_code == 404
    wrong = one("GET", "/predict")
    assert wrong.status_code == 405
    assert wrong.headers["allow"] == "POST"
    assert "does not take that method" in wrong.json()["error"]
    assert one("GET", "/v2/models/cats").status_code == 404
    assert one("GET", "/v2/models/guard/versions/2").status_code == 404


def test_health_tells_who_is_missing() -> None:
    double = GuardDouble(least_versions=3)
    double.suspend("noisy")
    response = one("GET", "/health", double)
    told = response.json()
    assert response.status_code == 503
    assert (told["ready"], told["degraded"], told["serving"], told["least_versions"]) == (False, True, 2, 3)
    assert told["versions"][1]["state"] == "suspended"
    assert "no answer within" in told["versions"][1]["reason"]
    assert one("GET", "/v2/health/ready", double).status_code == 503
    assert one("GET", "/v2/health/live", double).status_code == 200
    double.least_versions = 2
    assert one("GET", "/health", double).status_code == 200


def test_the_status_is_the_runtimes() -> None:
    double = GuardDouble()
    told = one("GET", "/status", double).json()
    assert told == json.loads(json.dumps(double.status().as_dict()))


def test_while_the_guard_is_lost_that_is_told() -> None:
    double = GuardDouble()

    def lost() -> Any:
        raise GuardLostError("the guard's process ended")

    double.status = lost  # type: ignore[method-assign]
    for path in ("/health", "/status"):
        answer = one("GET", path, double)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5"), path
        assert "process ended" in answer.json()["error"]
    assert one("GET", "/v2/health/ready", double).status_code == 503
    assert one("GET", "/v2/health/live", double).status_code == 200


def test_a_storm_of_questions_for_the_status_asks_the_guard_once() -> None:
    double, asked = GuardDouble(), []
    status = double.status
    double.status = lambda: asked.append(1) or status()  # type: ignore[func-returns-value, method-assign]

    async def work(client: httpx.AsyncClient) -> None:
        for path in ("/health", "/v2/health/ready", "/status", "/metrics") * 5:
            assert (await client.get(path)).status_code == 200

    talk(work, double)
    assert 1 <= len(asked) < 20


def change(path: str, body: Any = None, double: GuardDouble | None = None, **headers: str) -> Any:
    given = headers or AS_ADMIN
    return (
        one("POST", path, double, json=body, headers=given)
        if body is not None
        else one("POST", path, double, headers=given)
    )


def test_a_version_is_set_aside_and_released() -> None:
    double = GuardDouble()
    told = change("/versions/odd/quarantine", {"reason": "it looks sick"}, double)
    assert told.status_code == 200
    assert told.json()["state"] == "quarantined"
    assert told.json()["reason"] == "it looks sick"
    assert double.status().versions[2].state == "quarantined"
    told = change("/versions/odd/release", None, double)
    assert told.json()["state"] == "serving"
    assert double.status().versions[2].state == "serving"


def test_a_shadow_takes_a_versions_place() -> None:
    double = GuardDouble()
    refused = change("/versions/swap", {"leaving": "odd", "entering": "noisy"}, double)
    assert refused.status_code == 409
    assert "is no shadow" in refused.json()["error"]
    double.make_shadow("noisy")
    told = change("/versions/swap", {"leaving": "odd", "entering": "noisy", "force": True}, double)
    assert told.status_code == 200
    assert told.json()["allowed"] is True
    assert [version.state for version in double.status().versions] == ["serving", "serving", "shadow"]


@pytest.mark.parametrize("path", ["/versions/nobody/quarantine", "/versions/nobody/release"])
def test_unknown_versions_are_told(path: str) -> None:
    response = change(path, {"reason": "x"})
    assert response.status_code == 404
    assert "there are steady, noisy, odd" in response.json()["error"]


@pytest.mark.parametrize(
    ("path", "body", "text"),
    [
        ("/versions/odd/quarantine", {}, "body.reason: Field required"),
        ("/versions/odd/quarantine", {"reason": ""}, "body.reason"),
        ("/versions/odd/quarantine", {"reason": 5}, "body.reason"),
        ("/versions/odd/quarantine", [], "body"),
        ("/versions/swap", {"leaving": "odd"}, "body.entering"),
        ("/versions/swap", {"leaving": "odd", "entering": "a", "force": "yes"}, "body.force"),
        ("/versions/swap", {"leaving": "odd", "entering": "a", "forced": True}, "body.forced"),
    ],
)
def test_bodies_that_are_not_what_was_expected_are_told(path: str, body: Any, text: str) -> None:
    response = change(path, body)
    assert response.status_code == 422
    assert text in response.json()["error"]


CHANGES = [
    ("/versions/odd/quarantine", {"reason": "x"}),
    ("/versions/odd/release", None),
    ("/versions/swap", {"leaving": "odd", "entering": "noisy"}),
]


@pytest.mark.parametrize(("path", "body"), CHANGES)
def test_changes_need_the_admin_key(path: str, body: Any) -> None:
    double = GuardDouble()
    for headers in ({"X-API-Key": "not-the-right-key"}, {"Authorization": "Bearer"}, {"X-Other": "x"}):
        assert change(path, body, double, **headers).status_code == 401
    without = dataclasses.replace(SETTINGS, admin_key=None)
    response = one("POST", path, double, without, json=body, headers=AS_ADMIN)
    assert response.status_code == 403
    assert "DEEPFAILGUARD_ADMIN_KEY" in response.json()["error"]
    for_clients = dataclasses.replace(SETTINGS, key="a-key-for-clients")
    headers = {"X-API-Key": "a-key-for-clients"}
    assert one("POST", path, double, for_clients, json=body, headers=headers).status_code == 401
    assert all(version.state == "serving" for version in double.status().versions)


def metrics_of(text: str) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    told: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            told.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return told


def test_metrics_tell_what_happened() -> None:
    double = GuardDouble()
    double.suspend("noisy")
    images = images_of(4)
    images[3] = 7.0
    tensor = {"name": "images", "shape": [4, 1, 8, 8], "datatype": "FP32", "data": images.ravel().tolist()}

    async def work(client: httpx.AsyncClient) -> str:
        for _ in range(3):
            response = await client.post("/v2/models/guard/infer", json={"inputs": [tensor]})
            assert response.status_code == 200
        await client.get("/made/up")
        response = await client.get("/metrics")
        assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        return response.text

    told = metrics_of(talk(work, double))
    prefix = "deepfailguard_"
    infer = (("route", "/v2/models/{model}/infer"), ("status", "200"))
    assert told[f"{prefix}request_seconds_count"][infer] == 3
    assert told[f"{prefix}request_seconds_count"][(("route", "unknown"), ("status", "404"))] == 1
    assert told[f"{prefix}batch_images_sum"][()] == 12
    assert told[f"{prefix}batch_images_count"][()] == 3
    assert told[f"{prefix}inference_seconds_count"][()] == 3
    assert told[f"{prefix}queue_images"][()] == 0
    assert told[f"{prefix}open_requests"][()] == 0
    assert told[f"{prefix}failure_probability_count"][()] == 9  # the bad image is not judged
    expected = double.guard.without(["noisy"])(images[:3]).failure_probability
    assert told[f"{prefix}failure_probability_sum"][()] == pytest.approx(3 * float(expected.sum()))
    below = told[f"{prefix}failure_probability_bucket"][(("le", "0.01"),)]
    assert below == 3 * int((expected <= 0.01).sum())
    outcomes = {labels[0][1]: value for labels, value in told[f"{prefix}inputs_total"].items()}
    assert outcomes == {"answered": 9, "abstained": 0, "unanswered": 0, "bad": 3}
    assert told[f"{prefix}ready"][()] == 1
    assert told[f"{prefix}degraded"][()] == 1
    assert told[f"{prefix}drift"][(("cause", "nothing"),)] == 1
    assert sum(told[f"{prefix}drift"].values()) == 1


def test_metrics_tell_how_each_version_stands() -> None:
    double = GuardDouble()
    double.suspend("noisy")
    double.make_shadow("odd")
    told = metrics_of(one("GET", "/metrics", double).text)
    states = {
        (labels["version"], labels["state"]): value
        for labels, value in ((dict(key), value) for key, value in told["deepfailguard_version_state"].items())
    }
    for name, state in (("steady", "serving"), ("noisy", "suspended"), ("odd", "shadow")):
        assert {each for (version, each), value in states.items() if version == name and value} == {state}
    up = {dict(key)["version"]: value for key, value in told["deepfailguard_version_up"].items()}
    assert up == {"steady": 1, "noisy": 0, "odd": 1}
    assert told["deepfailguard_version_faults_total"] == {(("kind", "timeout"), ("version", "noisy")): 1}
    assert "deepfailguard_version_weight" not in told  # nothing is known yet, and NaN says nothing
    assert set(told["deepfailguard_version_accuracy"].values()) == set(double.card.calibration_accuracy)


def test_each_application_counts_for_itself() -> None:
    one("GET", "/v2")
    told = metrics_of(one("GET", "/metrics").text)
    assert "deepfailguard_request_seconds_count" not in told


def test_the_page_of_all_routes_needs_no_internet() -> None:
    page = one("GET", "/docs").text
    named = re.findall(r"""(?:src|href)=["']([^"']+)["']""", page)
    assert len(named) == 3
    for path in named:
        assert path.startswith("/static/docs/")
        assert talk(lambda client, path=path: client.get(path)).status_code == 200
    assert "https://" not in page


def test_the_dashboard_and_its_files_are_served() -> None:
    page = one("GET", "/")
    assert page.status_code == 200
    assert "default-src 'none'; script-src 'self'" in page.headers["content-security-policy"]
    assert one("GET", "/static/nothing.js").status_code == 404
    assert one("GET", "/static/../app.py").status_code == 404
    assert one("GET", "/static/%2e%2e/%2e%2e/app.py").status_code == 404
