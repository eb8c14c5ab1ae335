"""A guard that asks one version after the other."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from deepfailguard.guard.guarded import GuardedPredictor
from deepfailguard.predictor.staged import StagedPredictor
from tests.examples import bars, template_model

TEST = bars(300, seed=4)


class Counting(nn.Module):
    """Counts how many inputs it is asked about, batches filled up; fails if told to."""

    def __init__(self, seed: int, noise: float) -> None:
        super().__init__()
        self.sound = template_model(seed, noise)
        self.asked = 0
        self.fails = False

    def forward(self, x: Tensor) -> Tensor:
        self.asked += len(x)
        if self.fails:
            raise RuntimeError("out of memory")
        logits: Tensor = self.sound(x)
        return logits


def _guard() -> tuple[GuardedPredictor, list[Counting]]:
    models = [Counting(0, 0.6), Counting(1, 0.6), Counting(2, 0.6)]
    predictor = StagedPredictor(tolerance=0.01, rehearse=30)
    guard = GuardedPredictor.fit(models, bars(600, seed=3), predictor=predictor)
    for model in models:
        model.asked = 0
    return guard, models


@pytest.fixture(scope="module")
def fitted() -> tuple[GuardedPredictor, list[Counting]]:
    return _guard()


def test_further_versions_are_asked_about_doubtful_inputs_only(fitted: tuple[GuardedPredictor, list[Counting]]) -> None:
    guard, models = fitted
    verdict = guard(TEST.images)
    asked = [health.asked for health in verdict.health]
    assert asked[0] == 300
    assert 300 > asked[1] >= asked[2]
    assert sum(asked) < 600
    assert all(count <= model.asked <= 1.25 * count + 4 for count, model in zip(asked, models, strict=True))
    assert not verdict.degraded
    assert float((verdict.labels == TEST.labels).double().mean()) > 0.9
    unasked = verdict.version_labels[:, 1] == -1
    assert int(unasked.sum()) == 300 - asked[1]
    assert (verdict.weights[:, 1][unasked] == 0).all()
    position = int(unasked.nonzero()[0])
    assert "was not asked: the answer was sure enough without it" in verdict.explain(position)
    assert "1 of 1 versions gave it (2 not asked)" in verdict.explain(position)
    assert verdict.failure_probability[unasked].mean() < verdict.failure_probability[~unasked].mean()


def test_alone_and_in_a_batch_an_input_gets_the_same_answer(fitted: tuple[GuardedPredictor, list[Counting]]) -> None:
    guard, _ = fitted
    whole = guard(TEST.images[:40])
    single = [guard(TEST.images[i : i + 1]) for i in range(40)]
    assert torch.equal(torch.cat([each.version_labels for each in single]), whole.version_labels)
    again = torch.cat([each.probabilities for each in single])
    torch.testing.assert_close(again, whole.probabilities, rtol=1e-4, atol=1e-5)
    assert guard(TEST.images[:0]).labels.shape == (0,)


def test_where_the_first_version_fails_the_next_one_is_asked() -> None:
    guard, models = _guard()
    models[0].fails = True
    verdict = guard(TEST.images)
    assert verdict.degraded
    assert verdict.health[1].asked == 300
    told = verdict.explain(int((verdict.version_labels[:, 2] == -1).nonzero()[0]))
    assert "gave no answer: RuntimeError: out of memory" in told
    assert "1 of 2 versions gave it (1 not asked)" in told
    assert float((verdict.labels == TEST.labels).double().mean()) > 0.85


def test_it_comes_back_from_disk_as_it_was(fitted: tuple[GuardedPredictor, list[Counting]], tmp_path: Path) -> None:
    guard, _ = fitted
    guard.save(tmp_path)
    again = GuardedPredictor.load(tmp_path, [Counting(0, 0), Counting(1, 0), Counting(2, 0)])
    one, other = guard(TEST.images), again(TEST.images)
    assert torch.equal(one.probabilities, other.probabilities)
    assert torch.equal(one.version_labels, other.version_labels)
