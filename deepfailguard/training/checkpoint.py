"""What a training must remember to go on after a kill as if nothing had happened."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from deepfailguard.store import load_tensors, save_tensors

__all__ = ["Progress", "load_checkpoint", "save_checkpoint"]


@dataclass(slots=True)
class Progress:
    """How far a training is.

    Attributes:
        epoch: the next epoch to run.
        step: optimizer steps done.
        curves: one list per measured quantity, one entry per epoch.
        best_loss: smallest validation loss so far (only with patience).
        best_epoch: when it was reached.
        best_weights: the weights that reached it.
        scaler: state of the loss scaling of fp16 training.
        stop_reason: why it was stopped early; it stays stopped when it is resumed.
    """

    epoch: int = 0
    step: int = 0
    curves: dict[str, list[float]] = field(default_factory=dict)
    best_loss: float = float("inf")
    best_epoch: int = -1
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)
    stop_reason: str | None = None

    def record(self, **values: float) -> None:
        """Append one epoch's measurements to the curves."""
        for name, value in values.items():
            self.curves.setdefault(name, []).append(value)


def save_checkpoint(path: Path, model: nn.Module, optimizer: Optimizer, progress: Progress) -> None:
    """Write model, optimizer and progress as one file."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in progress.best_weights.items()}
    numbers: dict[str, float] = {}
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{name}"] = value
            elif value is not None:
                numbers[f"{index}.{name}"] = value
    best = None if progress.best_epoch < 0 else progress.best_loss
    metadata = {
        "epoch": progress.epoch,
        "step": progress.step,
        "curves": progress.curves,
        "best_loss": best,
        "best_epoch": progress.best_epoch,
        "scaler": progress.scaler,
        "stop_reason": progress.stop_reason,
        "numbers": numbers,
    }
    save_tensors(path, tensors, metadata)


def load_checkpoint(path: Path, model: nn.Module, optimizer: Optimizer) -> Progress:
    """Give model and optimizer back their state and return the progress."""
    file = load_tensors(path)
    model.load_state_dict(_with_prefix(file.tensors, "model."))
    state: dict[int, dict[str, Any]] = {}
    for name, value in [*_with_prefix(file.tensors, "optimizer.").items(), *file.metadata["numbers"].items()]:
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    best = file.metadata["best_loss"]
    return Progress(
        epoch=file.metadata["epoch"],
        step=file.metadata["step"],
        curves=file.metadata["curves"],
        best_loss=float("inf") if best is None else best,
        best_epoch=file.metadata["best_epoch"],
        best_weights=_with_prefix(file.tensors, "best."),
        scaler=file.metadata["scaler"],
        stop_reason=file.metadata["stop_reason"],
    )


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
