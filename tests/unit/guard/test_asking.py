"""What is asked, what is heard of it, and what is made of that."""

from typing import ClassVar

import pytest
import torch
from torch import Tensor

from deepfailguard.boundary.estimates.first_order import FirstOrderDistance
from deepfailguard.decision.classes import most_probable_class
from deepfailguard.decision.rules import highest_posterior
from deepfailguard.guard.asking import Answers, ask
from deepfailguard.guard.guarded import GuardedPredictor
from deepfailguard.guard.judging import judge
from deepfailguard.guard.verdict import VersionHealth
from deepfailguard.predictor.joint.predictor import JointPredictor
from deepfailguard.types import NO_ANSWER, Distances, Evidence, Need
from deepfailguard.versions.version import Version
from tests.examples import bars, template_model


def _answers(health: VersionHealth) -> Answers:
    inputs = health.asked
    nothing = torch.zeros(inputs)
    distances = Distances(torch.zeros(inputs, dtype=torch.int64), nothing, nothing.bool())
    return Answers(torch.zeros(inputs, 3, dtype=torch.float64), torch.zeros(inputs, 2), distances, health)


def test_the_health_of_several_batches_is_their_sum_with_the_first_problem() -> None:
    parts = [
        VersionHealth("a", 4, 4),
        VersionHealth("a", 1, 3, "out of memory"),
        VersionHealth("a", 0, 2, "logits are NaN"),
    ]
    joined = Answers.concatenate([_answers(part) for part in parts])
    assert joined.health == VersionHealth("a", 5, 9, "out of memory")
    assert len(joined.logits) == 9
    assert not joined.health.healthy


class _Counting(JointPredictor):
    """Counts how often class probabilities are computed."""

    count = 0

    def class_probability(self, evidence: Evidence) -> Tensor:
        self.count += 1
        return super().class_probability(evidence)


def test_class_probabilities_are_computed_once_and_give_the_same_bits() -> None:
    guard = GuardedPredictor.fit([template_model(0, 0.3), template_model(1, 0.8)], bars(120, seed=3))
    predictor, evidence = guard.saved.predictor, guard.saved.calibration.evidence
    counting = _Counting().with_state(predictor.state())
    judgement = judge(evidence, counting, most_probable_class)
    assert counting.count == 1
    assert judgement.class_probability is not None
    assert torch.equal(judgement.failure_probability, predictor.failure_probability(evidence))
    assert torch.equal(judgement.decision.labels, judgement.class_probability.argmax(1))
    plain = judge(evidence, counting, highest_posterior)
    assert plain.class_probability is None
    assert torch.equal(plain.failure_probability, judgement.failure_probability)


class _WithDistances(JointPredictor):
    """A joint predictor that wants distances beside; it rehearses as others do."""

    needs: ClassVar[frozenset[Need]] = JointPredictor.needs | {"distances"}


def test_a_predictor_that_needs_distances_may_rehearse() -> None:
    models = [template_model(0, 0.3), template_model(1, 0.8)]
    asked: list[int] = []

    def distance(model: torch.nn.Module, x: Tensor) -> Distances:
        asked.append(len(x))
        return FirstOrderDistance()(model, x)

    predictor = _WithDistances(rehearse=30)
    guard = GuardedPredictor.fit(models, bars(120, seed=3), predictor=predictor, distance=distance)
    rehearsed = guard.saved.calibration.rehearsed
    assert rehearsed is not None
    assert sum(asked) == 2 * (120 + 9 * 30)
    assert rehearsed.evidence.found.any()
    assert bool((rehearsed.evidence.distance[rehearsed.evidence.found] > 0).all())


def test_distances_that_nobody_needs_are_not_asked_for() -> None:
    def distance(model: torch.nn.Module, x: Tensor) -> Distances:
        raise AssertionError("asked for")

    guard = GuardedPredictor.fit([template_model(0, 0.3)], bars(120, seed=3), distance=distance)
    assert guard.saved.distance is None
    assert not guard(bars(5, seed=4).images).degraded


class _Picky(torch.nn.Module):
    """Raises on images that are bright."""

    def __init__(self, broken: bool = False) -> None:
        super().__init__()
        self.calls = 0
        self.broken = broken

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.broken or (x.mean((1, 2, 3)) > 0.9).any():
            raise RuntimeError("too bright")
        return x.flatten(1)[:, :3]


@pytest.mark.parametrize("bad", [[0], [5], [15], [3, 4], [0, 1]])
def test_an_input_that_raises_costs_the_others_nothing(bad: list[int]) -> None:
    images = torch.rand(16, 1, 4, 4) * 0.8
    images[bad] = 1.0
    version = Version.of(_Picky(), "picky", 3)
    answers = ask(version, None, images)
    lost = (answers.distances.labels == NO_ANSWER).nonzero().flatten().tolist()
    assert set(bad) <= set(lost)
    assert answers.health.fault == "exception"
    if len(bad) == 1:
        assert lost == bad
        rest = [n for n in range(16) if n not in bad]
        assert torch.equal(answers.logits[rest], images.flatten(1)[rest, :3].double())
    assert answers.health.answered == 16 - len(lost)
    assert "too bright" in answers.health.problem


def test_a_version_that_raises_on_everything_is_not_asked_again_and_again() -> None:
    model = _Picky(broken=True)
    answers = ask(Version.of(model, "picky", 3), None, torch.rand(64, 1, 4, 4))
    assert answers.health.answered == 0
    assert model.calls == 3
