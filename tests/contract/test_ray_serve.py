"""Versions on Ray Serve: the answers of one process, whatever happens to replicas."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from torch import Tensor

from deepfailguard.boundary.deepfool import FoolboxDeepFool
from deepfailguard.errors import ConfigurationError, WrongOutputError
from deepfailguard.guard.asking import Answers, ask
from deepfailguard.guard.guarded import GuardedPredictor
from deepfailguard.predictor.soft_vote import SoftVotePredictor
from deepfailguard.runtime.base import Question, Runner
from deepfailguard.runtime.runners.ray_replica import Briefing, ReplicaSettings, heard, plain, version_deployment
from deepfailguard.runtime.runners.ray_serve import RayLink, RayServeRunner
from deepfailguard.runtime.settings import Settings
from deepfailguard.serving.ray_app import RayGuard, deployed
from deepfailguard.serving.settings import Listening, ServerSettings
from tests.examples import CLASSES, bars
from tests.ray_examples import CANARIES, Obedient, ObedientSource, free_port, local_ray, replicas_of

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning")  # Ray's own

LONG = 60.0  # only ever waited for by a test that fails
NOISE = {"steady": 0.0, "noisy": 0.3}
DISTANCE = FoolboxDeepFool(batch_size=8, steps=5)
SETTINGS = ReplicaSettings(replicas=2, cpus=0.1, hang_seconds=2.0, check_every=0.5, upkeep_share=0.05)
QUESTION = Question(bars(12, seed=3).images, frozenset({"features", "stability"}))


@pytest.fixture(scope="module")
def ray() -> Iterator[Listening]:
    listening = Listening(port=free_port(), grpc_port=None)
    with pytest.MonkeyPatch.context() as patch, local_ray(patch, listening):
        yield listening


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ObedientSource:
    return ObedientSource(tmp_path_factory.mktemp("orders"))


@pytest.fixture(scope="module")
def handle(ray: Listening, source: ObedientSource) -> Any:
    from ray import serve

    briefing = Briefing("obedient", source, DISTANCE, bars(CANARIES, seed=1).images)
    return serve.run(version_deployment("obedient", briefing, SETTINGS), name="one", route_prefix=None)


@pytest.fixture
def runner(handle: Any) -> Iterator[RayServeRunner]:
    link = RayLink()
    runner = RayServeRunner("obedient", handle, CLASSES, link)
    runner.start().result(LONG)
    yield runner
    runner.close()
    assert link.closed


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)


def order(source: ObedientSource, what: str, times: int = 1) -> None:
    for mark in source.folder.glob(f"did-{what}-*"):
        mark.unlink()
    for number in range(times):
        (source.folder / f"{what}-{number}").touch()


def expected(source: ObedientSource, question: Question = QUESTION) -> Answers:
    with torch.no_grad():
        return ask(source.load(), DISTANCE if question.measured else None, question.images, question.needs)


def same_bits(one: Answers, other: Answers) -> bool:
    pairs = [
        (one.logits, other.logits),
        (one.features, other.features),
        (one.distances.labels, other.distances.labels),
        (one.distances.size, other.distances.size),
        (one.distances.found, other.distances.found),
    ]
    steady = (one.stability is None) == (other.stability is None)
    if one.stability is not None and other.stability is not None:
        pairs.append((one.stability, other.stability))
    return steady and one.health == other.health and all(torch.equal(*pair) for pair in pairs)


def test_it_is_a_runner_that_gives_the_answers_of_one_process(runner: Runner, source: ObedientSource) -> None:
    assert runner.name == "obedient"
    assert runner.parallel
    assert runner.memory() is None
    plain, large = Question(QUESTION.images, measured=False), Question(bars(2000).images, measured=False)
    for question in (QUESTION, plain, large, Question(QUESTION.images[:0])):
        assert same_bits(runner.ask(question).result(LONG), expected(source, question))
    assert runner.check_weights(0.01).result(LONG) == ()
    until(lambda: not runner.busy)


def test_what_the_model_does_wrong_stands_in_the_health(runner: Runner, source: ObedientSource) -> None:
    for _ in range(20):  # a replica may be obeying in its own canary
        order(source, "fail")
        health = runner.ask(Question(QUESTION.images[:1], measured=False)).result(LONG).health
        (source.folder / "fail-0").unlink(missing_ok=True)
        if health.fault is not None:
            break
    assert health.fault == "exception"
    assert "told to" in health.problem


def test_a_start_anew_loads_fresh_weights_in_all_replicas(runner: Runner, source: ObedientSource) -> None:
    before, pids = source.loads, replicas_of("obedient")
    order(source, "flip")
    runner.ask(Question(QUESTION.images, measured=False)).result(LONG)
    runner.start().result(LONG)
    for _ in range(4):
        assert same_bits(runner.ask(QUESTION).result(LONG), expected(source))
    until(lambda: source.loads >= before + 2)
    assert replicas_of("obedient") & pids


def test_what_waits_for_a_replica_is_taken_back_when_it_is_abandoned(runner: Runner, source: ObedientSource) -> None:
    pids = replicas_of("obedient")
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    questions = [runner.ask(QUESTION) for _ in range(6)]
    assert runner.busy
    runner.abandon()
    assert all(question.cancelled() for question in questions)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    assert same_bits(runner.ask(QUESTION).result(LONG), expected(source))


def test_a_replica_that_dies_while_it_answers_costs_no_answer(runner: Runner, source: ObedientSource) -> None:
    order(source, "die")
    assert same_bits(runner.ask(QUESTION).result(LONG), expected(source))
    (died,) = source.obeyed("die")
    assert died not in replicas_of("obedient")


def test_a_replica_that_hangs_costs_no_answer_and_is_replaced(runner: Runner, source: ObedientSource) -> None:
    until(lambda: len(replicas_of("obedient")) == 2)
    order(source, "hang")
    for _ in range(10):  # it gets the first of these, and no other
        assert same_bits(runner.ask(QUESTION).result(LONG), expected(source))
    (hung,) = source.obeyed("hang")
    until(lambda: hung not in replicas_of("obedient"))


def test_while_all_replicas_hang_the_runner_is_free_again_when_it_is_abandoned(
    runner: Runner, source: ObedientSource
) -> None:
    until(lambda: len(replicas_of("obedient")) == 2)
    order(source, "hang", times=2)
    hung = runner.ask(QUESTION)
    until(lambda: len(source.obeyed("hang")) == 2)
    assert not hung.done()
    assert runner.busy
    runner.abandon()
    assert not runner.busy
    assert runner.check_weights(0.001).result(LONG) == ()  # nobody is there to tell
    runner.start().result(LONG)
    assert same_bits(runner.ask(QUESTION).result(LONG), expected(source))


def test_a_replica_whose_weights_change_leaves(runner: Runner, source: ObedientSource) -> None:
    order(source, "flip")
    runner.ask(QUESTION).result(LONG)
    until(lambda: bool(source.obeyed("flip")))
    (flipped,) = source.obeyed("flip")
    until(lambda: flipped not in replicas_of("obedient"))
    for _ in range(6):
        assert same_bits(runner.ask(QUESTION).result(LONG), expected(source))


def test_images_are_stored_once_for_all_versions(ray: Listening) -> None:
    link = RayLink()
    question = Question(torch.rand(64, 3, 32, 32))
    assert link.images_of(question) is link.images_of(question)
    assert link.images_of(question) is not link.images_of(Question(question.images))
    small = link.images_of(QUESTION)
    assert isinstance(small, np.ndarray)


def test_answers_for_other_classes_are_refused(handle: Any) -> None:
    link = RayLink()
    runner = RayServeRunner("obedient", handle, CLASSES + 1, link)
    with pytest.raises(WrongOutputError, match="sent logits as"):
        runner.ask(QUESTION).result(LONG)
    runner.close()


def test_a_closed_runner_says_so(handle: Any) -> None:
    link = RayLink()
    runner = RayServeRunner("obedient", handle, CLASSES, link)
    runner.close()
    runner.close()
    with pytest.raises(ConfigurationError, match="was closed"):
        runner.ask(QUESTION).result(LONG)


def test_answers_are_checked_on_arrival(source: ObedientSource) -> None:
    facts, arrays = plain(expected(source))
    assert same_bits(heard((facts, arrays), "obedient", CLASSES, 12), expected(source))
    for broken in (
        {"logits": arrays["logits"][:, :2]},
        {"labels": arrays["labels"][:3]},
        {"size": arrays["size"].astype(np.float64)},
        {"labels": arrays["labels"] + CLASSES},
    ):
        with pytest.raises(WrongOutputError, match="version 'obedient' sent"):
            heard((facts, arrays | broken), "obedient", CLASSES, 12)


def test_replicas_may_grow_in_number_and_be_spread(ray: Listening, source: ObedientSource) -> None:
    briefing = Briefing("obedient", source, None, QUESTION.images)
    settings = ReplicaSettings(replicas=2, most_replicas=5, replicas_per_node=1)
    made = version_deployment("obedient", briefing, settings)._bound_deployment
    scaling = made._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (2, 5)
    assert made._replica_config.max_replicas_per_node == 1
    assert made.max_ongoing_requests == 1


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"replicas": 0}, "at least 1 replica"),
        ({"replicas": 3, "most_replicas": 2}, "less than replicas"),
        ({"hang_seconds": 0.0}, "hang_seconds must be a positive"),
    ],
)
def test_settings_that_cannot_work_are_refused(change: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        ReplicaSettings(**change)


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory) -> RayGuard:
    """A saved guard of two versions."""
    orders = tmp_path_factory.mktemp("guard-orders")
    models = {name: Obedient(orders, seed, noise) for seed, (name, noise) in enumerate(NOISE.items())}
    folder = tmp_path_factory.mktemp("guard") / "guard"
    GuardedPredictor.fit(models, bars(200, seed=5), predictor=SoftVotePredictor()).save(folder)
    return RayGuard(
        folder,
        models,
        ("tests", "deepfailguard"),
        runtime=Settings(deadline=2.0),
        server=ServerSettings(deadline=4.0),
        replicas=SETTINGS,
        guard_cpus=0.1,
    )


def infer(client: httpx.Client, images: Tensor) -> dict[str, Any]:
    """What the server answers by the Open Inference Protocol, each output by its name."""
    tensor = {"name": "images", "datatype": "FP32", "shape": list(images.shape), "data": images.flatten().tolist()}
    response = client.post("/v2/models/guard/infer", json={"inputs": [tensor]})
    assert response.status_code == 200, response.text
    told = response.json()
    return {**told["parameters"], **{output["name"]: output["data"] for output in told["outputs"]}}


def test_a_guard_on_ray_answers_over_http_whatever_happens_to_replicas(ray: Listening, guard: RayGuard) -> None:
    images = bars(4, seed=9).images
    expected = GuardedPredictor.load(guard.folder, guard.models, trusted=guard.trusted)(images).labels.tolist()
    with deployed(guard, ray), httpx.Client(base_url=f"http://127.0.0.1:{ray.port}", timeout=LONG) as client:
        told = infer(client, images)
        assert told["labels"] == expected
        assert not told["degraded"]
        assert told["versions"] == ",".join(NOISE)
        assert client.get("/status").json()["isolation"] == "other machines"
        os.kill(min(replicas_of("version-0")), signal.SIGKILL)  # one of two: nobody notices
        for _ in range(5):
            told = infer(client, images)
            assert (told["labels"], told["degraded"]) == (expected, False)
        for pid in replicas_of("version-1"):
            os.kill(pid, signal.SIGKILL)
        told = infer(client, images)
        assert (told["degraded"], told["ground"]) == (True, "versions left")
        assert told["labels"] == expected
        until(lambda: not infer(client, images)["degraded"])
        assert infer(client, images)["labels"] == expected
    assert not replicas_of("version-0")


def test_a_guard_that_is_not_sound_is_not_deployed(ray: Listening, guard: RayGuard, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no guard"), deployed(RayGuard(tmp_path), ray):
        pass


def test_where_it_cannot_be_served_is_told(ray: Listening, guard: RayGuard) -> None:
    with pytest.raises(ConfigurationError, match="a port must be given"), deployed(guard, Listening(port=0)):
        pass
    with pytest.raises(ConfigurationError, match=r"cannot run on cuda:0 without GPUs.*replicas\.gpus"):
        RayGuard(guard.folder, device="cuda:0")
