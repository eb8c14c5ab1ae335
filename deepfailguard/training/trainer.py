"""The training loop: plain PyTorch, with hooks, resumable to the bit."""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from deepfailguard.data.base import ImageSet
from deepfailguard.errors import CorruptFileError, TrainingDivergedError
from deepfailguard.hooks import Hooks, StepContext, TrainingHook
from deepfailguard.progress import track
from deepfailguard.seeding import derive_seed, seed_everything
from deepfailguard.training.batches import count_batches, hold_out, shuffled_batches
from deepfailguard.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from deepfailguard.training.losses import loss_function
from deepfailguard.training.schedule import learning_rate_at, make_optimizer, set_learning_rate
from deepfailguard.versions.spec import Recipe, VersionSpec
from deepfailguard.versions.version import evaluating

__all__ = ["Trainer", "TrainingResult"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """A trained model and how its training ended.

    Attributes:
        model: in evaluation mode, on the trainer's device.
        outcome: ``completed`` all epochs, or ``stopped_early``.
        reason: why it was stopped, empty if completed.
        curves: loss, accuracy (and validation loss) per epoch.
        hook_failures: how often each observing hook failed.
    """

    model: nn.Module
    outcome: Literal["completed", "stopped_early"]
    reason: str
    curves: dict[str, list[float]]
    hook_failures: dict[str, int]


class Trainer:
    """Trains versions from their specs.

    Args:
        device: where to train.
        hooks: called along the way, see `deepfailguard.hooks`.
        quiet: show no progress.
    """

    def __init__(self, device: torch.device, hooks: Sequence[TrainingHook] = (), quiet: bool = False) -> None:
        self.device = device
        self.hooks = hooks
        self.quiet = quiet

    def train(
        self, spec: VersionSpec, images: ImageSet, classes: int, checkpoint: Path | None = None
    ) -> TrainingResult:
        """Train one version.

        Args:
            spec: what to train and how.
            images: what to learn from.
            classes: K.
            checkpoint: file that keeps the state after each epoch; if it exists, training goes on from there.

        Raises:
            TrainingDivergedError: the loss is no longer finite.
        """
        seed_everything(spec.seed, "initial weights")
        model = spec.architecture.build(classes).to(self.device)
        optimizer = make_optimizer(model, spec.recipe)
        run = _Run(self, spec, model, optimizer, Hooks(self.hooks))
        if checkpoint is not None:
            run.resume(checkpoint)
        return run.finish(images, checkpoint)


class _Run:
    """The state of one training."""

    def __init__(
        self, trainer: Trainer, spec: VersionSpec, model: nn.Module, optimizer: Optimizer, hooks: Hooks
    ) -> None:
        self.device, self.quiet, self.hooks = trainer.device, trainer.quiet, hooks
        self.spec, self.model, self.optimizer = spec, model, optimizer
        self.recipe: Recipe = spec.recipe
        self.loss = loss_function(spec.recipe)
        self.context = StepContext(model, optimizer)
        self.progress = Progress()
        self.autocast_dtype = _autocast_dtype(trainer.device)
        scale_losses = spec.recipe.mixed_precision and self.autocast_dtype == torch.float16
        self.scaler = torch.amp.GradScaler(trainer.device.type, enabled=scale_losses)

    def resume(self, checkpoint: Path) -> None:
        if not checkpoint.is_file():
            return
        try:
            self.progress = load_checkpoint(checkpoint, self.model, self.optimizer)
        except CorruptFileError as error:
            logger.warning("%s; training %s starts from the beginning", error, self.spec.name)
            return
        if self.progress.scaler:
            self.scaler.load_state_dict(self.progress.scaler)
        logger.info("%s goes on from epoch %d", self.spec.name, self.progress.epoch)

    def finish(self, images: ImageSet, checkpoint: Path | None) -> TrainingResult:
        learn, validate = images, None
        if self.recipe.patience is not None:
            learn, validate = hold_out(images, self.recipe.validation_share, self.spec.seed)
        self.context.epoch, self.context.step = self.progress.epoch, self.progress.step
        self.context.stop_reason = self.progress.stop_reason
        self.hooks.call("on_start", self.context)
        try:
            self._epochs(learn, validate, checkpoint)
            self._check_weights()
        except BaseException as error:
            self.hooks.error(self.context, error)
            raise
        self.hooks.call("on_end", self.context)
        if self.progress.best_weights:
            self.model.load_state_dict(self.progress.best_weights)
        reason = self.context.stop_reason or ""
        outcome: Literal["completed", "stopped_early"] = "stopped_early" if reason else "completed"
        return TrainingResult(self.model.eval(), outcome, reason, self.progress.curves, dict(self.hooks.failures))

    def _epochs(self, learn: ImageSet, validate: ImageSet | None, checkpoint: Path | None) -> None:
        per_epoch = count_batches(learn, self.recipe.batch_size)
        steps = per_epoch * (self.recipe.epochs - self.progress.epoch)
        ticks = iter(track(range(steps), steps, f"training {self.spec.name}", self.quiet))
        self._stop_without_patience_left()
        while self.progress.epoch < self.recipe.epochs and not self.context.stop_reason:
            self._epoch(learn, validate, per_epoch, ticks)
            if checkpoint is not None:
                self.progress.scaler, self.progress.stop_reason = self.scaler.state_dict(), self.context.stop_reason
                save_checkpoint(checkpoint, self.model, self.optimizer, self.progress)
            self._stop_without_patience_left()
        for _ in ticks:  # let the progress display end
            break

    def _epoch(self, learn: ImageSet, validate: ImageSet | None, per_epoch: int, ticks: Iterator[int]) -> None:
        epoch_seed = derive_seed(self.spec.seed, "epoch", self.progress.epoch)
        seed_everything(epoch_seed, "dropout")
        self.model.train()
        sums = torch.zeros(3, dtype=torch.float64)  # loss, right answers, images
        batches = shuffled_batches(learn, self.recipe.batch_size, epoch_seed, self.recipe.flip_and_crop)
        for batch in batches:
            next(ticks, None)
            sums += self._step(batch, per_epoch * self.recipe.epochs)
            if self.context.stop_reason:
                break
        self.progress.record(loss=float(sums[0] / sums[2]), accuracy=float(sums[1] / sums[2]))
        if validate is not None:
            self._validate(validate)
        self.context.metrics = {name: values[-1] for name, values in self.progress.curves.items()}
        self.hooks.call("on_epoch", self.context)
        self.progress.epoch += 1
        self.context.epoch = self.progress.epoch

    def _step(self, batch: ImageSet, steps: int) -> Tensor:
        context = self.context
        set_learning_rate(self.optimizer, learning_rate_at(self.progress.step, steps, self.recipe))
        context.inputs, context.targets = batch.images.to(self.device), batch.labels.to(self.device)
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, self.autocast_dtype, enabled=self.recipe.mixed_precision):
            logits = self.model(context.inputs)
        context.loss = self.loss(logits, context.targets)
        value = self._finite(context.loss)
        self._update(context.loss)
        right = int((logits.detach().argmax(1) == context.targets).sum())
        return torch.tensor([value * len(batch), right, len(batch)], dtype=torch.float64)

    def _update(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        self.hooks.call("on_backward", self.context)
        if self.recipe.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.gradient_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.progress.step += 1
        self.context.step = self.progress.step
        self.hooks.call("on_step", self.context)

    def _finite(self, loss: Tensor) -> float:
        value = float(loss.detach())
        if not math.isfinite(value):
            raise self._diverged(f"the loss is {value}")
        return value

    def _check_weights(self) -> None:
        """The last step's damage shows in no loss."""
        for name, parameter in self.model.named_parameters():
            if not torch.isfinite(parameter).all():
                raise self._diverged(f"{name} is not finite")

    def _diverged(self, what: str) -> TrainingDivergedError:
        return TrainingDivergedError(
            f"{self.spec.name}: {what} in epoch {self.progress.epoch}, step {self.progress.step} "
            f"(learning rate {self.optimizer.param_groups[0]['lr']:.3g}); "
            "lower training.learning_rate or set training.gradient_clip=1"
        )

    @torch.no_grad()
    def _validate(self, images: ImageSet) -> None:
        with evaluating(self.model):
            parts = zip(
                images.images.split(self.recipe.batch_size), images.labels.split(self.recipe.batch_size), strict=True
            )
            total = sum(float(self.loss(self.model(x.to(self.device)), y.to(self.device))) * len(y) for x, y in parts)
        loss = self._finite(torch.tensor(total / len(images)))
        self.progress.record(validation_loss=loss)
        if loss < self.progress.best_loss:
            self.progress.best_loss, self.progress.best_epoch = loss, self.progress.epoch
            self.progress.best_weights = {k: v.detach().cpu().clone() for k, v in self.model.state_dict().items()}

    def _stop_without_patience_left(self) -> None:
        waited = self.progress.epoch - 1 - self.progress.best_epoch
        if self.recipe.patience is not None and self.progress.epoch > 0 and waited >= self.recipe.patience:
            self.context.request_stop(
                f"no better validation loss for {waited} epochs; "
                f"the weights of epoch {self.progress.best_epoch} are kept"
            )


def _autocast_dtype(device: torch.device) -> torch.dtype:
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        return torch.float16
    return torch.bfloat16
