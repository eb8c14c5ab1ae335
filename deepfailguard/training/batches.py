"""Batches in an order that depends on the seed and the epoch only, so that a resumed epoch sees the same."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from deepfailguard.data.base import ImageSet
from deepfailguard.seeding import generator

__all__ = ["count_batches", "hold_out", "shuffled_batches"]

_SHIFT_SHARE = 8  # images are shifted by up to 1/8 of their size


def shuffled_batches(images: ImageSet, batch_size: int, seed: int, flip_and_crop: bool) -> Iterator[ImageSet]:
    """Yield all images in a random order; a last batch of one is left out (batch norm cannot learn from it)."""
    random = generator(seed, "batches")
    order = torch.randperm(len(images), generator=random)
    for positions in order.split(batch_size):
        if len(positions) == 1 and batch_size > 1 and len(images) > 1:
            continue
        batch = images.take(positions)
        yield ImageSet(_flip_and_crop(batch.images, random), batch.labels) if flip_and_crop else batch


def count_batches(images: ImageSet, batch_size: int) -> int:
    """How many batches `shuffled_batches` yields."""
    full, rest = divmod(len(images), batch_size)
    return full + (1 if rest > 1 or full == 0 else 0)


def hold_out(images: ImageSet, share: float, seed: int) -> tuple[ImageSet, ImageSet]:
    """Divide training images into those to learn from and those that tell when to stop."""
    order = torch.randperm(len(images), generator=generator(seed, "hold out"))
    held = max(1, round(len(images) * share))
    return images.take(order[held:]), images.take(order[:held])


def _flip_and_crop(images: Tensor, random: torch.Generator) -> Tensor:
    mirrored = torch.rand(len(images), generator=random) < 0.5
    images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    height, width = images.shape[2:]
    down, right = max(1, height // _SHIFT_SHARE), max(1, width // _SHIFT_SHARE)
    padded = F.pad(images, (right, right, down, down), mode="replicate")
    tops = torch.randint(2 * down + 1, (len(images),), generator=random)
    lefts = torch.randint(2 * right + 1, (len(images),), generator=random)
    rows = tops[:, None] + torch.arange(height)
    columns = lefts[:, None] + torch.arange(width)
    picture = torch.arange(len(images))[:, None, None]
    return padded.permute(0, 2, 3, 1)[picture, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
