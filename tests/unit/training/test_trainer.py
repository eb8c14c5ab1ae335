from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from deepfailguard.errors import TrainingDivergedError
from deepfailguard.hooks import Hook, StepContext
from deepfailguard.identity import weights_fingerprint
from deepfailguard.training.trainer import Trainer
from deepfailguard.versions.spec import Recipe, VersionSpec
from tests.examples import CLASSES, TinyNet, bars

CPU = torch.device("cpu")


def spec(**recipe: object) -> VersionSpec:
    settings = {"epochs": 4, "batch_size": 32, "learning_rate": 0.01} | recipe
    return VersionSpec("bars", TinyNet(), Recipe(**settings))  # type: ignore[arg-type]


class StopAt(Hook):
    """Kills the training as a crash would, after some steps."""

    role = "controller"

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, context: StepContext) -> None:
        if context.step == self.step:
            raise KeyboardInterrupt


def accuracy(model: nn.Module) -> float:
    test = bars(200, seed=9)
    return float((model(test.images).argmax(1) == test.labels).double().mean())


def test_it_learns() -> None:
    result = Trainer(CPU).train(spec(epochs=12), bars(300), CLASSES)
    assert accuracy(result.model) > 0.8
    assert result.outcome == "completed"
    assert len(result.curves["loss"]) == 12
    assert result.curves["loss"][-1] < result.curves["loss"][0]
    assert not result.model.training


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("step", [1, 9, 15])
def test_a_killed_training_resumes_and_equals_an_uninterrupted_one(tmp_path: Path, optimizer: str, step: int) -> None:
    wanted, images, checkpoint = spec(optimizer=optimizer, flip_and_crop=True), bars(100), tmp_path / "c.safetensors"
    whole = Trainer(CPU).train(wanted, images, CLASSES)
    with pytest.raises(KeyboardInterrupt):
        Trainer(CPU, [StopAt(step)]).train(wanted, images, CLASSES, checkpoint)
    resumed = Trainer(CPU).train(wanted, images, CLASSES, checkpoint)
    assert weights_fingerprint(resumed.model) == weights_fingerprint(whole.model)
    assert resumed.curves == whole.curves


def test_patience_ends_training_as_a_result_of_its_own_kind(tmp_path: Path) -> None:
    wanted, checkpoint = spec(epochs=60, learning_rate=0.1, patience=2), tmp_path / "c.safetensors"
    result = Trainer(CPU).train(wanted, bars(120, noise=1.0), CLASSES, checkpoint)
    assert result.outcome == "stopped_early"
    assert "no better validation loss for 2 epochs" in result.reason
    best = min(range(len(result.curves["validation_loss"])), key=result.curves["validation_loss"].__getitem__)
    assert best == len(result.curves["loss"]) - 3
    again = Trainer(CPU).train(wanted, bars(120, noise=1.0), CLASSES, checkpoint)
    assert again.outcome == "stopped_early"
    assert weights_fingerprint(again.model) == weights_fingerprint(result.model)


def test_a_torn_checkpoint_starts_over(tmp_path: Path) -> None:
    (tmp_path / "c.safetensors").write_bytes(b"torn")
    whole = Trainer(CPU).train(spec(), bars(100), CLASSES)
    again = Trainer(CPU).train(spec(), bars(100), CLASSES, tmp_path / "c.safetensors")
    assert weights_fingerprint(again.model) == weights_fingerprint(whole.model)


def test_divergence_is_an_error_that_names_the_rate() -> None:
    with pytest.raises(TrainingDivergedError, match=r"the loss is .*learning_rate"):
        Trainer(CPU).train(spec(learning_rate=1e38, optimizer="sgd", schedule="constant"), bars(100), CLASSES)


def test_the_last_steps_damage_is_noticed() -> None:
    class Spoil(Hook):
        role = "controller"

        def on_step(self, context: StepContext) -> None:
            if context.step == 4:
                next(context.model.parameters()).data[0] = float("inf")

    with pytest.raises(TrainingDivergedError, match=r"0\.weight is not finite"):
        Trainer(CPU, [Spoil()]).train(spec(epochs=1), bars(100), CLASSES)


def test_single_images_can_be_learned_from() -> None:
    net = VersionSpec("bars", Plain(), Recipe(epochs=2, batch_size=1, learning_rate=0.003))
    result = Trainer(CPU).train(net, bars(60), CLASSES)
    assert result.curves["loss"][1] < result.curves["loss"][0]


@dataclass(frozen=True)
class Plain:
    """No batch norm, which cannot learn from one image."""

    def build(self, classes: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))


def test_a_stop_that_was_asked_for_outlasts_a_kill(tmp_path: Path) -> None:
    class Stop(Hook):
        def on_step(self, context: StepContext) -> None:
            if context.step == 2:
                context.request_stop("enough")

    checkpoint = tmp_path / "c.safetensors"
    stopped = Trainer(CPU, [Stop()]).train(spec(), bars(100), CLASSES, checkpoint)
    again = Trainer(CPU).train(spec(), bars(100), CLASSES, checkpoint)
    assert (again.outcome, again.reason) == ("stopped_early", "enough")
    assert weights_fingerprint(again.model) == weights_fingerprint(stopped.model)


def test_seeds_differ_and_repeat() -> None:
    prints = [
        weights_fingerprint(
            Trainer(CPU).train(VersionSpec("bars", TinyNet(), Recipe(epochs=1), seed=s), bars(64), CLASSES).model
        )
        for s in (0, 0, 1)
    ]
    assert prints[0] == prints[1] != prints[2]


def test_hooks_see_every_step_and_may_stop() -> None:
    class Watcher(Hook):
        def __init__(self) -> None:
            self.events: list[str] = []

        def on_start(self, context: StepContext) -> None:
            self.events.append("start")

        def on_backward(self, context: StepContext) -> None:
            assert all(p.grad is not None for p in context.model.parameters())

        def on_step(self, context: StepContext) -> None:
            self.events.append(f"step {context.step}")
            if context.step == 3:
                context.request_stop("seen enough")

        def on_end(self, context: StepContext) -> None:
            self.events.append("end")

    watcher = Watcher()
    result = Trainer(CPU, [watcher]).train(spec(), bars(64), CLASSES)
    assert watcher.events == ["start", "step 1", "step 2", "step 3", "end"]
    assert (result.outcome, result.reason) == ("stopped_early", "seen enough")


@pytest.mark.parametrize("schedule", ["constant", "cosine", "one_cycle"])
def test_mixed_precision_learns_too(schedule: str) -> None:
    result = Trainer(CPU).train(spec(epochs=10, mixed_precision=True, schedule=schedule), bars(300), CLASSES)
    assert accuracy(result.model) > 0.7
    assert all(p.dtype == torch.float32 for p in result.model.parameters())
