from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn

from deepfailguard.errors import ConfigurationError
from deepfailguard.faults.program import TooFewEpochs
from deepfailguard.faults.test_data import NoisyInputs
from deepfailguard.faults.training_data import LabelNoise
from deepfailguard.faults.weights import PrunedWeights
from deepfailguard.hooks import Hook, StepContext
from deepfailguard.pipeline.training import TrainRequest, train_version
from deepfailguard.training.trainer import Trainer
from deepfailguard.versions.pool import Pool
from deepfailguard.versions.spec import Recipe
from tests.examples import Bars, TinyNet

TRAINER = Trainer(torch.device("cpu"))
RECIPE = Recipe(epochs=5, batch_size=64, learning_rate=0.01)


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    return Pool(tmp_path, trusted=["tests", "deepfailguard", "mymodel"])


def request(*faults: object, seed: int = 0) -> TrainRequest:
    return TrainRequest(Bars(), TinyNet(), RECIPE, faults, seed)


def test_a_version_is_trained_once_and_found_again(pool: Pool) -> None:
    first = train_version(request(), pool, TRAINER)
    again = train_version(request(), pool, TRAINER)
    assert (first.found_again, again.found_again) == (False, True)
    assert first.card == again.card
    assert first.card.name == "tiny_net-s0"
    assert set(first.card.metrics) == {"train_accuracy", "calibration_accuracy", "test_accuracy"}
    assert not list(pool.folder.rglob("*.resume.*"))


def test_faults_of_every_kind_combine_and_leave_receipts(pool: Pool) -> None:
    faults = (PrunedWeights(rate=0.5), LabelNoise(rate=0.4), TooFewEpochs())
    filed = train_version(request(*faults), pool, TRAINER)
    assert filed.card.faults == ("too_few_epochs", "label_noise", "pruned_weights")
    assert filed.card.name == "tiny_net+too_few_epochs+label_noise+pruned_weights-s0"
    assert filed.card.recipe["epochs"] < RECIPE.epochs
    assert len(pool.cards("bars")) == 2  # the version without the weight fault was filed on the way
    assert train_version(request(*faults), pool, TRAINER).found_again
    version = pool.load(filed.card, torch.device("cpu"))
    zeros = sum(int((p == 0).sum()) for p in version.model.parameters())
    assert zeros > 50


def test_each_fault_and_seed_is_an_identity_of_its_own(pool: Pool) -> None:
    requests = [request(), request(seed=1), request(LabelNoise(rate=0.4)), request(LabelNoise(rate=0.5))]
    assert len({train_version(r, pool, TRAINER).card.key for r in requests}) == 4


def test_faults_of_test_inputs_do_not_belong_here(pool: Pool) -> None:
    with pytest.raises(ConfigurationError, match=r"'noisy_inputs' acts on test inputs.*cache_distances"):
        train_version(request(NoisyInputs()), pool, TRAINER)


def test_an_architecture_that_does_not_fit_is_refused_before_training(pool: Pool) -> None:
    class Steps(Hook):
        seen = 0

        def on_step(self, context: StepContext) -> None:
            self.seen += 1

    steps = Steps()
    with pytest.raises(ConfigurationError, match=r"'tiny_net' cannot take inputs of shape \(1, 8, 8\)"):
        train_version(TrainRequest(Bars(), TinyNet(channels=3), RECIPE), pool, Trainer(TRAINER.device, [steps]))
    with pytest.raises(ConfigurationError, match=r"gives outputs of shape \(2, 7\), expected \(2, 3\)"):
        train_version(TrainRequest(Bars(), Stubborn(), RECIPE), pool, TRAINER)
    assert steps.seen == 0


@dataclass(frozen=True)
class Stubborn:
    """Ignores how many classes are asked for."""

    name: ClassVar[str] = "stubborn"

    def build(self, classes: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))


@pytest.mark.parametrize("damage", ["lost", "flipped"])
def test_damaged_weights_are_trained_again(pool: Pool, damage: str) -> None:
    first = train_version(request(), pool, TRAINER)
    weights = next(pool.folder.rglob("weights.safetensors"))
    if damage == "lost":
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    again = train_version(request(), pool, TRAINER)
    assert not again.found_again
    assert again.card.fingerprint == first.card.fingerprint
    assert pool.load(again.card, TRAINER.device).fingerprint == first.card.fingerprint


def test_what_a_controller_changes_is_not_filed(pool: Pool) -> None:
    controller = Hook()
    controller.role = "controller"
    with pytest.raises(ConfigurationError, match=r"call Trainer\.train instead"):
        train_version(request(), pool, Trainer(TRAINER.device, [controller]))


def test_a_killed_training_goes_on_in_the_next_call(pool: Pool) -> None:
    class Kill(Hook):
        def on_step(self, context: StepContext) -> None:
            if context.epoch == 2:
                raise KeyboardInterrupt

    whole = train_version(request(), Pool(pool.folder / "other", pool.trusted), TRAINER)
    with pytest.raises(KeyboardInterrupt):
        train_version(request(), pool, Trainer(TRAINER.device, [Kill()]))
    assert pool.cards("bars") == []
    resumed = train_version(request(), pool, TRAINER)
    assert resumed.card.fingerprint == whole.card.fingerprint
    assert resumed.card.curves == whole.card.curves
