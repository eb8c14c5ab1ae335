"""Single numbers that are used to tell wrong answers from right ones, each as it comes, without any fitting."""

from typing import Final

import torch
from torch import Tensor

from deepfailguard.types import Evidence

__all__ = ["AGREEMENT", "agreement", "as_failure", "single_scores"]

AGREEMENT: Final = "agreement"
_NEIGHBOURS: Final = 10
_LINEAR: Final = 1e-3  # what a linear layer may miss the logits by, over their spread: float32 rounding
_TINY: Final = torch.finfo(torch.float64).tiny


def single_scores(asked: Evidence, known: Evidence, truth: Tensor) -> dict[str, Tensor]:
    """Scores (B,) float64 of one version's answers; each grows with trust, NaN where it is not known.

    Args:
        asked: (B, 1), with logits, features and distances.
        known: (M, 1) on calibration inputs: what the scores of features compare with.
        truth: (M,) int64 of these.
    """
    if asked.logits is None or asked.features is None or known.logits is None or known.features is None:
        raise ValueError("single scores need evidence with logits and features")
    logits, labels = asked.logits[:, 0].double(), asked.labels[:, 0].clamp_min(0)
    features, bank = asked.features[0].double(), known.features[0].double()
    usable = bank.isfinite().all(1) & known.answered[:, 0]
    bank, bank_truth, bank_logits = bank[usable], truth[usable], known.logits[usable, 0].double()
    scores = _of_logits(logits) | {"boundary distance": _boundary(asked)}
    scores |= _of_neighbours(features, labels, bank, bank_truth)
    distance = _last_layer(logits, labels, bank, bank_logits)
    return scores if distance is None else scores | {"last-layer distance": distance}


def agreement(labels: Tensor, column: int) -> Tensor:
    """Share of the other versions that give the same label, (B,) float64, of labels (B, N).

    >>> agreement(torch.tensor([[1, 1, 0], [2, 0, 1]]), 0).tolist()
    [0.5, 0.0]
    """
    others = [other for other in range(labels.shape[1]) if other != column]
    return (labels[:, others] == labels[:, [column]]).double().mean(1)


def as_failure(trust: Tensor, answered: Tensor) -> Tensor:
    """Trust (B,) as a number in [0, 1] of the opposite order; 1 where nothing is known or nobody answered.

    >>> as_failure(torch.tensor([5.0, 7.0, float("nan")]), torch.tensor([True, True, True])).tolist()
    [0.5, 0.0, 1.0]
    """
    kept = torch.where(answered & ~trust.isnan(), trust, -torch.inf)
    values, place = torch.unique(kept, return_inverse=True)
    failure: Tensor = 1 - place.double() / max(1, len(values) - 1)
    return failure


def _of_logits(logits: Tensor) -> dict[str, Tensor]:
    probability = logits.softmax(1)
    first, second = probability.topk(2, dim=1).values.unbind(1)
    top, next_one = logits.topk(2, dim=1).values.unbind(1)
    return {
        "maximum softmax": first,
        "margin": first - second,
        "logit gap": top - next_one,
        "entropy": -torch.special.entr(probability).sum(1),
        "energy": logits.logsumexp(1),
        "largest logit": top,
    }


def _boundary(asked: Evidence) -> Tensor:
    """An answer that no search could flip counts as the farthest from the boundary."""
    return torch.where(asked.found[:, 0], asked.distance[:, 0].double(), torch.inf)


def _of_neighbours(features: Tensor, labels: Tensor, bank: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """By the class means and the nearest ones of the features of calibration inputs."""
    means = torch.stack([bank[truth == k].mean(0) for k in truth.unique()])
    unit, units = (torch.nn.functional.normalize(each, dim=1) for each in (features, bank))
    near = torch.cdist(unit, units).topk(min(_NEIGHBOURS, len(bank)), dim=1, largest=False)
    scores = {
        "nearest class mean": -torch.cdist(features, means).amin(1),
        "nearest neighbours": -near.values[:, -1],
        "neighbours' classes": (truth[near.indices] == labels[:, None]).double().mean(1),
    }
    usable = features.isfinite().all(1)
    return {name: torch.where(usable, score, torch.nan) for name, score in scores.items()}


def _last_layer(logits: Tensor, labels: Tensor, bank: Tensor, bank_logits: Tensor) -> Tensor | None:
    """How far the features must move to change the answer; None if no linear layer on them makes the logits.

    The layer is read off the calibration inputs. In directions in which no feature ever moves it is taken to be zero.
    """
    given = torch.cat([bank, torch.ones(len(bank), 1, dtype=bank.dtype)], 1)
    layer = torch.linalg.lstsq(given, bank_logits, driver="gelsd").solution
    missed = (given @ layer - bank_logits).abs().amax()
    if not missed <= _LINEAR * bank_logits.std():
        return None
    weight = layer[:-1].T
    slope = (weight[labels][:, None] - weight[None]).norm(dim=2)
    gap = logits.gather(1, labels[:, None]) - logits
    own = torch.nn.functional.one_hot(labels, logits.shape[1]).bool()
    return torch.where(own, torch.inf, gap / slope.clamp_min(_TINY)).amin(1)
