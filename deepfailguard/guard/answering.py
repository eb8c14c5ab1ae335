"""What comes before and after asking: checked images, and a verdict from the versions' answers."""

import torch
from torch import Tensor

from deepfailguard.errors import DataFormatError
from deepfailguard.guard.asking import Answers, evidence_of
from deepfailguard.guard.judging import judge
from deepfailguard.guard.saved import GuardCard, SavedGuard
from deepfailguard.guard.verdict import Verdict
from deepfailguard.types import NO_ANSWER

__all__ = ["answerable", "checked_images", "problems_of", "verdict_of"]


def checked_images(images: Tensor, card: GuardCard) -> Tensor:
    """The images (B, C, H, W) as float32.

    Raises:
        DataFormatError: another shape than in calibration, or not floating point.
    """
    if not isinstance(images, Tensor):
        raise DataFormatError(f"expected a torch tensor of images, got a {type(images).__name__}; torch.as_tensor it")
    if images.ndim != 4:
        without_channel = images.shape != card.input_shape and images.shape[1:] == card.input_shape[1:]
        missing = "the channel dimension" if without_channel else "the batch dimension"
        raise DataFormatError(f"expected images (B, C, H, W), got shape {tuple(images.shape)}; add {missing}")
    if tuple(images.shape[1:]) != card.input_shape:
        raise DataFormatError(
            f"expected images of shape {card.input_shape} as in calibration, got {tuple(images.shape[1:])}"
        )
    if not images.is_floating_point():
        low, high = card.bounds.low, card.bounds.high
        raise DataFormatError(f"expected floating point images in [{low}, {high}], got {images.dtype}")
    return images.float()


def answerable(images: Tensor, card: GuardCard) -> tuple[Tensor, Tensor]:
    """Positions (G,) on the CPU and the images that are finite and in the bounds, as float32.

    Raises:
        DataFormatError: another shape than in calibration, or not floating point.
    """
    images = checked_images(images, card)
    outside = card.bounds.outside(images) if len(images) else torch.zeros(0, dtype=torch.bool)
    good = (~outside).nonzero().flatten().cpu()
    return good, images[good.to(images.device)]


def verdict_of(saved: SavedGuard, answers: list[Answers], good: Tensor, batch: int) -> Verdict:
    """The verdict on a batch.

    Args:
        saved: the guard.
        answers: of every version to the good inputs.
        good: positions in the batch of the inputs that were asked about; the others are not judged.
        batch: how many inputs there are.
    """
    evidence = evidence_of(answers, saved.predictor.needs)
    judgement = judge(evidence, saved.predictor, saved.decision)
    decision = judgement.decision
    probabilities = judgement.class_probability
    if probabilities is None:
        softmax = torch.stack([answer.probabilities for answer in answers], dim=1)
        probabilities = (softmax * decision.weights[:, :, None].to(softmax.dtype)).sum(1)
    probabilities = torch.where(decision.labels[:, None] == NO_ANSWER, 0.0, probabilities)
    return Verdict(
        labels=_spread(decision.labels, good, batch, NO_ANSWER),
        failure_probability=_spread(decision.failure_probability, good, batch, 1.0),
        abstained=_spread(decision.abstained, good, batch, True),
        weights=_spread(decision.weights, good, batch, 0.0),
        probabilities=_spread(probabilities, good, batch, 0.0),
        version_labels=_spread(evidence.labels, good, batch, NO_ANSWER),
        version_failure_probability=_spread(judgement.failure_probability, good, batch, 1.0),
        distance=_spread(evidence.distance, good, batch, 0.0),
        found=_spread(evidence.found, good, batch, False),
        health=tuple(answer.health for answer in answers),
        problems=problems_of(saved.card, good, batch),
        classes=saved.card.classes,
        measured=saved.distance is not None,
    )


def problems_of(card: GuardCard, good: Tensor, batch: int) -> dict[int, str]:
    """What is wrong with the inputs of a batch that are not good, by position."""
    positions = set(good.tolist())
    problem = f"it has values that are NaN or outside [{card.bounds.low}, {card.bounds.high}]"
    return {i: problem for i in range(batch) if i not in positions}


def _spread(values: Tensor, positions: Tensor, batch: int, otherwise: float) -> Tensor:
    """Put the values of the judged inputs in their places among all inputs of the batch."""
    if len(positions) == batch:
        return values
    whole = torch.full((batch, *values.shape[1:]), otherwise, dtype=values.dtype)
    whole[positions] = values.cpu()
    return whole
