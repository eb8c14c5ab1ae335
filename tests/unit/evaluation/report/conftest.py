"""Made-up evaluations: whatever answers and failure probabilities a test wants, with all the rest filled in."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from deepfailguard.decision.rules import highest_posterior
from deepfailguard.evaluation.records import Evaluation
from deepfailguard.seeding import generator
from deepfailguard.types import Bounds, Evidence

Build = Callable[..., Evaluation]


def evidence_of(labels: Tensor, purpose: str) -> Evidence:
    random = generator(0, "made-up evidence", purpose)
    distance = torch.rand(labels.shape, generator=random) + 0.1
    return Evidence(labels, distance, torch.rand(labels.shape, generator=random) < 0.9)


def build_evaluation(
    labels: Tensor,
    truth: Tensor,
    failure_probability: Tensor,
    *,
    names: Sequence[str] = (),
    classes: Sequence[str] = ("apple", "bear", "car", "door"),
    calibrated: bool = True,
    abstain_above: float | None = None,
    image_shape: tuple[int, int, int] = (1, 8, 8),
) -> Evaluation:
    count = labels.shape[1]
    images = torch.rand(len(truth), *image_shape, generator=generator(0, "made-up images"))
    return Evaluation(
        title="made-up: versions, cached",
        names=tuple(names) or tuple(f"version{i}-s0" for i in range(count)),
        faults=tuple("label_noise" if i == 1 else "" for i in range(count)),
        classes=tuple(classes),
        bounds=Bounds(),
        images=images,
        truth=truth,
        evidence=evidence_of(labels, "test"),
        failure_probability=failure_probability.double(),
        decision=highest_posterior(labels, failure_probability.double(), abstain_above=abstain_above),
        calibration_accuracy=torch.linspace(0.7, 0.9, count, dtype=torch.float64),
        calibration=evidence_of(labels, "calibration") if calibrated else None,
        calibration_truth=truth if calibrated else None,
        facts={"predictor": "made up"},
    )


def random_evaluation(versions: int = 3, inputs: int = 80, seed: int = 0, **settings: object) -> Evaluation:
    """Versions that are right three times in four, and whose failure probabilities know a little."""
    random = generator(seed, "made-up answers")
    truth = torch.randint(4, (inputs,), generator=random)
    wrong = torch.rand(inputs, versions, generator=random) < 0.25
    labels = torch.where(
        wrong, (truth[:, None] + torch.randint(1, 4, wrong.shape, generator=random)) % 4, truth[:, None]
    )
    probability = (0.7 * torch.rand(wrong.shape, generator=random, dtype=torch.float64) + 0.3 * wrong).clamp(0, 1)
    return build_evaluation(labels, truth, probability, **settings)  # type: ignore[arg-type]


@pytest.fixture
def build() -> Build:
    return build_evaluation


@pytest.fixture
def random() -> Build:
    return random_evaluation


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return random_evaluation()


@pytest.fixture
def all_right() -> Evaluation:
    truth = torch.arange(12) % 2
    return build_evaluation(truth[:, None].repeat(1, 2), truth, torch.full((12, 2), 0.1), classes=("no", "yes"))


@pytest.fixture
def all_wrong() -> Evaluation:
    truth = torch.arange(12) % 2
    return build_evaluation(1 - truth[:, None].repeat(1, 2), truth, torch.full((12, 2), 0.4), classes=("no", "yes"))
