"""The seam through which others look into, or act on, a training loop.

An *observer* only looks: when it fails, the failure is counted and logged, and training goes on.
A *controller* acts (repairs, injects, stops): when it fails, training fails.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ["Hook", "Hooks", "StepContext", "TrainingHook"]

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class StepContext:
    """What a hook sees of the loop. It is the live state: a controller may change it.

    Attributes:
        model: the model that is being trained.
        optimizer: its optimizer.
        epoch: counts from 0.
        step: optimizer steps done so far.
        inputs: the batch (B, C, H, W), None outside a step.
        targets: its labels (B,) int64, None outside a step.
        loss: the batch's loss, None before the forward pass.
        metrics: what the epoch measured so far.
        stop_reason: set it (see `request_stop`) to end training after this step.
    """

    model: nn.Module
    optimizer: Optimizer
    epoch: int = 0
    step: int = 0
    inputs: Tensor | None = None
    targets: Tensor | None = None
    loss: Tensor | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    stop_reason: str | None = None

    def request_stop(self, reason: str) -> None:
        """Ask the loop to end after this step; the result will say so and why."""
        self.stop_reason = reason


class TrainingHook(Protocol):
    """Called by the loop. Subclass `Hook` to write only the methods that you need."""

    role: Literal["observer", "controller"]

    def on_start(self, context: StepContext) -> None:
        """Before the first step (also of a resumed training)."""

    def on_backward(self, context: StepContext) -> None:
        """After the backward pass, before the optimizer's step: gradients can be read and changed."""

    def on_step(self, context: StepContext) -> None:
        """After the optimizer's step."""

    def on_epoch(self, context: StepContext) -> None:
        """After an epoch; `context.metrics` holds what it measured."""

    def on_error(self, context: StepContext, error: BaseException) -> None:
        """Training is about to fail with this error."""

    def on_end(self, context: StepContext) -> None:
        """After the last step, not after an error."""


class Hook(TrainingHook):
    """An observer that does nothing; override what you need, set ``role = "controller"`` to act."""

    role: Literal["observer", "controller"] = "observer"


_Event = Literal["on_start", "on_backward", "on_step", "on_epoch", "on_end"]


class Hooks:
    """Calls several hooks in their order and treats their errors by their roles.

    Attributes:
        failures: how often each observer failed, by class name.
    """

    def __init__(self, hooks: Sequence[TrainingHook] = ()) -> None:
        self.hooks = tuple(hooks)
        self.failures: Counter[str] = Counter()

    def call(self, event: _Event, context: StepContext) -> None:
        """Call one event on every hook."""
        for hook in self.hooks:
            try:
                getattr(hook, event)(context)
            except Exception as error:
                self._handle(hook, event, error)

    def error(self, context: StepContext, error: BaseException) -> None:
        """Tell every hook that training fails; nothing that they raise may hide the first error."""
        for hook in self.hooks:
            try:
                hook.on_error(context, error)
            except Exception as second:
                self.failures[type(hook).__name__] += 1
                logger.warning("hook %s failed in on_error: %s", type(hook).__name__, second)

    def _handle(self, hook: TrainingHook, event: str, error: Exception) -> None:
        if getattr(hook, "role", "observer") == "controller":
            raise error
        name = type(hook).__name__
        self.failures[name] += 1
        if self.failures[name] == 1:
            logger.warning("observer %s failed in %s: %r (counted, not shown again)", name, event, error)
