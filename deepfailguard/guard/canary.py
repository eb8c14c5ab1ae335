"""Golden inputs: a few calibration images, and what every version said to them when the guard was fitted."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from typing import Final

import torch
from torch import Tensor

from deepfailguard.errors import WrongOutputError
from deepfailguard.guard.asking import Answers, ask
from deepfailguard.types import NO_ANSWER
from deepfailguard.versions.version import Version

__all__ = ["Canary", "check_canary", "logits_told", "mismatch", "recorded", "retaken_canary", "take_canary"]

_MOST: Final = 8  # images
_TOLERANCE: Final = 1e-2  # of the largest logit: other devices and kernels round otherwise
_LEAST_SCALE: Final = 1e-6  # a version whose logits are all zero has no scale

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Canary:
    """Inputs with the answers that are expected to them.

    Attributes:
        images: (M, C, H, W) float32 on the CPU, finite and in the bounds; M >= 1.
        logits: (M, N, K) float32 on the CPU, what each of N versions said; NaN where nothing is expected, since it did
            not answer then, or not twice the same.
    """

    images: Tensor
    logits: Tensor

    def of_versions(self, columns: Sequence[int]) -> "Canary":
        """The same inputs, for some of the versions."""
        return replace(self, logits=self.logits[:, list(columns)])


def take_canary(versions: Sequence[Version], images: Tensor, labels: Tensor) -> Canary:
    """Pick up to 8 images, of as many classes as may be, and record what the versions say to them.

    Args:
        versions: N of them, in the guard's order.
        images: (B, C, H, W) float32, finite and in the bounds, B >= 1.
        labels: (B,) int64.
    """
    chosen = images[_spread(labels.cpu()).to(images.device)].detach().float().cpu().contiguous()
    return Canary(chosen, torch.stack([recorded(version, chosen) for version in versions], 1))


def retaken_canary(canary: Canary | None, versions: Sequence[Version], columns: Sequence[int]) -> Canary | None:
    """The same inputs with what some of the versions say now; nothing if there are none."""
    if canary is None or not columns:
        return canary
    logits = canary.logits.clone()
    for column in columns:
        logits[:, column] = recorded(versions[column], canary.images)
    return replace(canary, logits=logits)


def recorded(version: Version, images: Tensor) -> Tensor:
    """What a version says to images (M, C, H, W), to be expected of it later: (M, K) float32 on the CPU.

    It is asked twice: of one that answers the same inputs otherwise each time nothing can be expected, all is NaN.
    """
    first, second = (logits_told(ask(version, None, images)).float() for _ in range(2))
    differs = mismatch(first, second)
    if differs:
        logger.warning("version %r answers the same inputs otherwise each time (%s): no canary", version.name, differs)
        return torch.full_like(first, torch.nan)
    return first


def logits_told(answers: Answers) -> Tensor:
    """The logits (M, K) float64 in answers, NaN where there is no answer."""
    silent = answers.distances.labels == NO_ANSWER
    return torch.where(silent.cpu()[:, None], torch.nan, answers.logits)


def mismatch(expected: Tensor, told: Tensor) -> str:
    """What differs between the logits that are expected of a version and those that it told; empty if nothing does.

    They differ where one is further off than a hundredth of the largest expected logit. Thus a label may flip only
    where the two best logits are all but equal.

    Args:
        expected: (M, K) floating point; inputs where one is not finite do not count.
        told: (M, K) floating point, NaN where there is no answer.
    """
    if told.shape != expected.shape:
        return f"logits of shape {tuple(told.shape)} where {tuple(expected.shape)} are expected"
    rows = torch.isfinite(expected).all(1)
    wanted, came = expected[rows].double().cpu(), told[rows.to(told.device)].double().cpu()
    silent = int((~torch.isfinite(came)).any(1).sum())
    if silent:
        return f"no finite logits for {silent} of {len(rows)} inputs"
    scale = wanted.abs().amax().clamp_min(_LEAST_SCALE) if len(wanted) else torch.tensor(1.0)
    off = (wanted - came).abs().amax(1) / scale
    wrong = off > _TOLERANCE
    if not wrong.any():
        return ""
    flips = int((wrong & (wanted.argmax(1) != came.argmax(1))).sum())
    labels = f", {flips} of them with another label" if flips else ""
    most = f"off by up to {float(off.max()):.1%} of the largest"
    return f"the logits of {int(wrong.sum())} of {len(rows)} inputs{labels}, {most}"


def check_canary(canary: Canary | None, versions: Sequence[Version]) -> None:
    """Refuse versions that answer otherwise than recorded, though their weights are the same.

    Raises:
        WrongOutputError: one does.
    """
    if canary is None:
        return
    for column, version in enumerate(versions):
        answers = ask(version, None, canary.images)
        differs = mismatch(canary.logits[:, column], logits_told(answers))
        if differs:
            why = f" ({answers.health.problem})" if answers.health.problem else ""
            raise WrongOutputError(
                f"version {version.name!r} answers the guard's canary inputs otherwise than when it was fitted: "
                f"{differs}{why}; its code changed (architecture, preprocessing, class order?): put it back as it was, "
                "or fit the guard again"
            )


def _spread(labels: Tensor) -> Tensor:
    """Positions of up to 8 images: the first of each class (of some classes, if they are many), then the second."""
    classes = labels.unique()
    if len(classes) > _MOST:
        classes = classes[torch.linspace(0, len(classes) - 1, _MOST).round().long()]
    of_class = [(labels == label).nonzero().flatten()[:_MOST].tolist() for label in classes]
    in_turn = chain.from_iterable(zip_longest(*of_class))
    return torch.tensor([position for position in in_turn if position is not None][:_MOST])
