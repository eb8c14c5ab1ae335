"""A second opinion of each version: what its own features say to a fresh head that was fitted on calibration inputs.

Many faults leave the features good and spoil what is made of them (a damaged last layer, scales that are off, wrong
labels in training). A linear discriminant on the features, fitted on clean calibration inputs, is not spoilt. How
far an input lies from all class means tells besides how far it is from anything the head was fitted on.
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

__all__ = ["SHRINKAGES", "FeatureHead", "fit_head"]

SHRINKAGES: Final = (0.1, 0.4, 0.8)
_LARGEST: Final = 30.0  # deviations from the mean that a feature counts with at most
_SMALLEST: Final = 1e-6  # deviation below which a feature is constant


@dataclass(frozen=True, slots=True)
class FeatureHead:
    """A linear discriminant with one covariance for all K classes.

    Attributes:
        mean: (F,) float64 of the features.
        scale: (F,) float64 > 0, their deviations.
        whitening: (F, F) float64, from standardised to whitened features.
        centres: (K, F) float64, the classes' means, whitened.
        prior: (K,) float64, log-probabilities of the classes.
    """

    mean: Tensor
    scale: Tensor
    whitening: Tensor
    centres: Tensor
    prior: Tensor

    def __call__(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Class log-probabilities (B, K) and distances to the nearest class mean (B,) of features (B, F)."""
        squared = torch.cdist(self._whitened(features), self.centres).square()
        return (self.prior - squared / 2).log_softmax(1), squared.amin(1).sqrt()

    def _whitened(self, features: Tensor) -> Tensor:
        known = features.to(self.mean).nan_to_num(0.0, 0.0, 0.0)
        return ((known - self.mean) / self.scale).clamp(-_LARGEST, _LARGEST) @ self.whitening


def fit_head(features: Tensor, truth: Tensor, classes: int, shrinkage: float) -> FeatureHead:
    """Fit a head.

    A class that does not occur has the mean of all inputs, and the prior of half an input.

    Args:
        features: (M, F) floating point, M >= 1 and F >= 1.
        truth: (M,) int64 in [0, K).
        classes: K.
        shrinkage: of the covariance towards a multiple of the identity, in (0, 1].
    """
    known = features.double().nan_to_num(0.0, 0.0, 0.0)
    mean = known.mean(0)
    spread = known.std(0, correction=0)
    scale = torch.where(spread > _SMALLEST, spread, 1.0)
    standard = ((known - mean) / scale).clamp(-_LARGEST, _LARGEST)
    count = torch.bincount(truth, minlength=classes).double()
    sums = standard.new_zeros(classes, standard.shape[1]).index_add(0, truth, standard)
    centres = sums / count.clamp_min(1.0)[:, None]
    inside = standard - centres[truth]
    covariance = inside.T @ inside / len(inside)
    level = covariance.diagonal().mean().clamp_min(_SMALLEST)
    identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    factor = torch.linalg.cholesky((1 - shrinkage) * covariance + shrinkage * level * identity)
    whitening = torch.linalg.solve_triangular(factor, identity, upper=False).T.contiguous()
    prior = (count.clamp_min(0.5) / count.clamp_min(0.5).sum()).log()
    return FeatureHead(mean, scale, whitening, centres @ whitening, prior)
