"""The search for models without gradients: by the labels alone, with foolbox's HopSkipJump.

Chen, Jordan, Wainwright, "HopSkipJumpAttack: A Query-Efficient Decision-Based Attack", IEEE S&P 2020. It walks along
the boundary from some image that is answered otherwise, so such an image must be had first.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn

from deepfailguard.boundary.foolbox_quiet import foolbox_silent
from deepfailguard.boundary.search.effort import EffortName
from deepfailguard.boundary.search.norms import NormName, size_of
from deepfailguard.boundary.search.slopes import View
from deepfailguard.seeding import generator, random_state_kept, seed_default
from deepfailguard.types import Bounds

__all__ = ["search_by_decisions"]

_STEPS: Final[dict[EffortName, int]] = {"fast": 4, "balanced": 12, "tight": 40}
_FIRST_PROBES: Final = 50  # forward passes for the first gradient; later ones take more
_MOST_PROBES: Final = 1000
_NOISE_IMAGES: Final = 16
_TOGETHER: Final = 16  # images in one walk


def search_by_decisions(
    view: View, images: Tensor, answers: Tensor, effort: EffortName, norm: NormName, bounds: Bounds
) -> Tensor:
    """Sizes (B,) of verified changes of images (B, D); infinite where no image of another answer was met.

    The random probes are seeded, so the same batch gives the same result; another batch may give another.
    """
    start, started = _starting_points(view, images, answers, bounds)
    size = torch.full_like(images[:, 0], torch.inf)
    rows = started.nonzero().squeeze(1)
    if len(rows) == 0:
        return size
    moved = _walk(view, images[rows], start[rows], answers[rows], _attack(effort, norm), bounds)
    _, flipped = view.margins(moved, answers[rows])
    moved = torch.where(flipped[:, None], moved, start[rows])  # where the walk went wrong its start still counts
    return size.index_copy(0, rows, size_of(moved - images[rows], norm))


def _attack(effort: EffortName, norm: NormName) -> Any:
    from foolbox.attacks.hop_skip_jump import HopSkipJumpAttack  # half a second: only who searches so shall pay

    return HopSkipJumpAttack(
        steps=_STEPS[effort],
        initial_gradient_eval_steps=_FIRST_PROBES,
        max_gradient_eval_steps=_MOST_PROBES,
        constraint="linf" if norm == "linf" else "l2",  # an L1 size is that of the L2 walk's change
    )


def _walk(view: View, images: Tensor, start: Tensor, answers: Tensor, attack: Any, bounds: Bounds) -> Tensor:
    """The images (B, D) that the walks end at; a few walk at once, since each takes many probes along."""
    parts = torch.arange(len(images), device=images.device).split(_TOGETHER)
    return torch.cat([_walk_together(view, images[p], start[p], answers[p], attack, bounds) for p in parts])


def _walk_together(view: View, images: Tensor, start: Tensor, answers: Tensor, attack: Any, bounds: Bounds) -> Tensor:
    from foolbox.models.pytorch import PyTorchModel

    low, high = torch.tensor([bounds.low, bounds.high], dtype=images.dtype).tolist()
    shaped, begin = images.view(-1, *view.shape), start.view(-1, *view.shape)
    try:
        with foolbox_silent("hop_skip_jump.py"), torch.no_grad(), _seeded(images.device):
            victim = PyTorchModel(_OnCopies(view.model).eval(), (low, high), device=images.device)
            moved: Tensor = attack.run(victim, shaped, answers, starting_points=begin)
            return moved.detach().flatten(1)
    except (AssertionError, ValueError):
        # foolbox wants each answer to be the same in any company; dynamically quantised models do not keep that.
        if len(images) == 1:
            return start
    halves = torch.arange(len(images), device=images.device).split((len(images) + 1) // 2)
    return torch.cat([_walk_together(view, images[h], start[h], answers[h], attack, bounds) for h in halves])


class _OnCopies(nn.Module):
    """The model on copies of its inputs, since it may work in place."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        return self.model(x.clone())


@contextmanager
def _seeded(device: torch.device) -> Iterator[None]:
    """Foolbox draws from torch's own generators: seed those of this device, and give their states back."""
    on_gpu = device.type == "cuda"
    with random_state_kept([device] if on_gpu else []):
        seed_default(0)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(0)
        yield


def _starting_points(view: View, images: Tensor, answers: Tensor, bounds: Bounds) -> tuple[Tensor, Tensor]:
    """For each image one that is answered otherwise (B, D), and whether it was met (B,)."""
    start, started = images.clone(), torch.zeros_like(answers, dtype=torch.bool)
    for candidate in _candidates(images, bounds):
        rows = (~started).nonzero().squeeze(1)
        if len(rows) == 0:
            break
        _, flipped = view.margins(candidate[rows], answers[rows])
        start[rows[flipped]] = candidate[rows[flipped]]
        started[rows[flipped]] = True
    return start, started


def _candidates(images: Tensor, bounds: Bounds) -> Iterator[Tensor]:
    """Likely other answers: the negative, plain images, noise."""
    yield bounds.low + bounds.high - images
    for level in (bounds.low, (bounds.low + bounds.high) / 2, bounds.high):
        yield torch.full_like(images, level)
    random = generator(0, "starting points of the decision-based search")
    for _ in range(_NOISE_IMAGES):
        noise = torch.rand(1, images.shape[1], generator=random, device="cpu").to(images)
        yield (bounds.low + bounds.width * noise).expand_as(images)
