"""Teaching the regressor what a search found."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from deepfailguard.boundary.counts import check_count
from deepfailguard.boundary.estimates.regressor import Inputs, Parameters, predict
from deepfailguard.errors import ConfigurationError
from deepfailguard.seeding import generator

__all__ = ["Teaching", "distil"]

_BATCH: Final = 128
_RATE: Final = 3e-3
_DECAY: Final = 0.3
_TOLERANCE: Final = 0.1  # errors of the log distance beyond count linearly: a search that failed badly shall not rule
_MOST_CLASSES: Final = 200  # with more, a number for each pair of classes would outweigh everything else
_WARM_UP: Final = 0.2  # share of the steps in which the rate rises


@dataclass(frozen=True, slots=True)
class Teaching:
    """How the regressor is taught.

    Attributes:
        width: hidden units (>= 1).
        networks: how many are averaged (>= 1).
        epochs: passes over the images (>= 1), cut short at `most_steps`.
        most_steps: of the optimiser (>= 1).
        dropout: share of hidden units that a step leaves out, in [0, 1).
        seed: of initial weights, order and dropout.
    """

    width: int = 96
    networks: int = 2
    epochs: int = 80
    most_steps: int = 3000
    dropout: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("width", "networks", "epochs", "most_steps"):
            check_count(f"teaching.{name}", getattr(self, name), least=1)
        dropout: object = self.dropout  # a configuration may give anything
        if not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
            raise ConfigurationError(f"teaching.dropout must be a number in [0, 1), got {dropout!r}")


def distil(inputs: Inputs, log_distance: Tensor, teaching: Teaching) -> Parameters:
    """Fit the regressor; the same arguments give the same bits, whatever the number of threads.

    Args:
        inputs: of B answers, on the CPU.
        log_distance: (B,) what the search found, finite.
        teaching: how to teach.
    """
    with torch.inference_mode(False), torch.enable_grad(), _one_thread():
        inputs = Inputs(inputs.rows.clone(), inputs.log_leads.clone(), inputs.labels.clone())
        parameters = _start(inputs, log_distance.clone(), teaching)
        learned = {k: t.requires_grad_() for k, t in parameters.tensors().items() if k not in ("centre", "spread")}
        parameters = replace(parameters, **learned)
        _train(parameters, list(learned.values()), inputs, log_distance.clone(), teaching)
        return Parameters(**{name: tensor.detach() for name, tensor in parameters.tensors().items()})


def _start(inputs: Inputs, log_distance: Tensor, teaching: Teaching) -> Parameters:
    rows, classes = inputs.rows, inputs.log_leads.shape[1]
    spread = rows.std(0, correction=0)
    draw = generator(teaching.seed, "learned distance", "weights")

    def uniform(*shape: int, inputs: int) -> Tensor:
        return (2 * torch.rand(shape, generator=draw) - 1) / math.sqrt(inputs)

    nets, width, size = teaching.networks, teaching.width, rows.shape[1]
    return Parameters(
        centre=rows.mean(0),
        spread=spread + 1e-3 * spread.mean() + 1e-6,  # what hardly varies in calibration shall not be blown up
        shift=(log_distance - inputs.log_leads.amin(1)).median(),
        pairs=torch.zeros((classes, classes) if classes <= _MOST_CLASSES else (1, 1)),
        first=uniform(nets, size, width, inputs=size),
        first_bias=uniform(nets, 1, width, inputs=size),
        second=uniform(nets, width, width, inputs=width),
        second_bias=uniform(nets, 1, width, inputs=width),
        last=uniform(nets, width, classes, inputs=width),
        last_bias=torch.zeros(nets, 1, classes),
    )


def _train(parameters: Parameters, learned: list[Tensor], inputs: Inputs, target: Tensor, teaching: Teaching) -> None:
    steps = min(teaching.most_steps, teaching.epochs * math.ceil(len(inputs) / _BATCH))
    optimizer = torch.optim.AdamW(learned, lr=_RATE, weight_decay=_DECAY)
    warm_up = max(_WARM_UP, 1.5 / (steps + 1))  # the schedule divides by the steps after the first in which it rises
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps + 1, pct_start=warm_up)
    draw = generator(teaching.seed, "learned distance", "order")
    for index in _batches(len(inputs), steps, draw):
        keep = _keep((teaching.networks, len(index), teaching.width), teaching.dropout, draw)
        told = predict(parameters, inputs[index], keep)
        loss = F.smooth_l1_loss(told, target[index].expand_as(told), beta=_TOLERANCE) * teaching.networks
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def _batches(count: int, steps: int, draw: torch.Generator) -> Iterator[Tensor]:
    left: list[Tensor] = []
    for _ in range(steps):
        left = left or list(torch.randperm(count, generator=draw).split(_BATCH))
        yield left.pop()


def _keep(shape: tuple[int, int, int], dropout: float, draw: torch.Generator) -> tuple[Tensor, Tensor] | None:
    if dropout == 0:
        return None
    first, second = (torch.rand(2, *shape, generator=draw) >= dropout).float() / (1 - dropout)
    return first, second


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums over several threads round differently: one thread makes the result the machine's alone."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
