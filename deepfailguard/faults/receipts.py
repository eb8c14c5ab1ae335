"""Receipts that are measured: what differs between before and after, not what a fault meant to do."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from deepfailguard.faults.base import Fault
from deepfailguard.identity import describe
from deepfailguard.types import Change, Receipt

__all__ = ["EXAMPLES", "label_change", "pixel_change", "receipt_of"]

EXAMPLES = 3


def receipt_of(fault: Fault[Any], seed: int, changes: Iterable[Change]) -> Receipt:
    """The fault's receipt over the changes that changed something.

    Raises:
        EmptyReceiptError: none of them did.
    """
    return Receipt(fault.name, describe(fault), seed, tuple(change for change in changes if change.count > 0))


def pixel_change(part: str, before: Tensor, after: Tensor) -> Change:
    """What happened to the images of a part, counted in values that are no longer equal.

    Args:
        part: name of the part of the splits.
        before: (B, C, H, W) float32.
        after: (B, C, H, W) float32.
    """
    return Change(f"{part}.images", _summary(before), _summary(after), int((before != after).sum()))


def _summary(images: Tensor) -> str:
    return f"{len(images)} images of mean {images.mean().item():.4f} and deviation {images.std().item():.4f}"


def label_change(part: str, before: Tensor, after: Tensor) -> Change:
    """What happened to the labels (B,) int64 of a part, counted in labels that are no longer equal."""
    changed = (before != after).nonzero().flatten()
    return Change(f"{part}.labels", _first(before[changed]), _first(after[changed]), len(changed))


def _first(labels: Tensor) -> str:
    shown = ", ".join(map(str, labels[:EXAMPLES].tolist()))
    return f"{shown}, ..." if len(labels) > EXAMPLES else shown
