"""For each version, the densities of the boundary distances of its right and of its wrong answers."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deepfailguard.errors import ConfigurationError
from deepfailguard.predictor.density import Density, fit_density, log_density
from deepfailguard.types import Evidence

__all__ = ["AnswerDensities", "LogDensities", "fit_answer_densities", "usable_distances"]


@dataclass(frozen=True, slots=True)
class LogDensities:
    """Densities of B distances of N versions.

    Attributes:
        right: (B, N) float64, log density among right answers; -inf where it is unknown.
        wrong: (B, N) float64, log density among wrong answers; -inf where it is unknown.
    """

    right: Tensor
    wrong: Tensor


@dataclass(frozen=True, slots=True)
class AnswerDensities:
    """Densities of N versions.

    Attributes:
        right: N densities of the distances of right answers.
        wrong: N densities of the distances of wrong answers.
    """

    right: tuple[Density, ...]
    wrong: tuple[Density, ...]

    def __post_init__(self) -> None:
        if len(self.right) != len(self.wrong):
            raise ConfigurationError(
                f"each version needs a density of right and one of wrong answers, "
                f"got {len(self.right)} and {len(self.wrong)}"
            )

    @property
    def both_known(self) -> Tensor:
        """(N,) bool, whether the version has both densities."""
        return torch.tensor([r.known and w.known for r, w in zip(self.right, self.wrong, strict=True)])

    def log_at(self, distance: Tensor) -> LogDensities:
        """Log densities at distances, taken as the nearest end where they lie outside the calibration range.

        Outside there are two tails of kernels, whose ratio says nothing of right and wrong.

        Args:
            distance: (B, N); the result means nothing where it is not finite.
        """
        columns = zip(self.right, self.wrong, distance.double().unbind(1), strict=True)
        pairs = [_log_pair(right, wrong, column) for right, wrong, column in columns]
        return LogDensities(torch.stack([p.right for p in pairs], 1), torch.stack([p.wrong for p in pairs], 1))

    def state(self) -> dict[str, Tensor]:
        """All densities in six tensors."""
        return {**_pack("right", self.right), **_pack("wrong", self.wrong)}

    @staticmethod
    def state_names() -> tuple[str, ...]:
        """Names of the tensors of `state`."""
        return tuple(f"{kind}_{part}" for kind in ("right", "wrong") for part in ("bandwidth", "count", "points"))

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> "AnswerDensities":
        """What `state` was made of."""
        return cls(_unpack("right", state), _unpack("wrong", state))


def usable_distances(evidence: Evidence) -> Tensor:
    """(B, N) bool, where there are an answer and a finite distance that was found."""
    return evidence.answered & evidence.found & torch.isfinite(evidence.distance)


def fit_answer_densities(evidence: Evidence, correct: Tensor) -> AnswerDensities:
    """Estimate the densities of every version from calibration evidence and correctness (B, N) bool."""
    usable = usable_distances(evidence)
    right, wrong = [], []
    for version in range(evidence.versions):
        measured, distance = usable[:, version], evidence.distance[:, version].double()
        span = _span(distance[measured])
        right.append(fit_density(distance[measured & correct[:, version]], span))
        wrong.append(fit_density(distance[measured & ~correct[:, version]], span))
    return AnswerDensities(tuple(right), tuple(wrong))


def _span(distance: Tensor) -> float:
    return float(distance.max() - distance.min()) if len(distance) else 0.0


def _log_pair(right: Density, wrong: Density, distance: Tensor) -> LogDensities:
    points = torch.cat([right.points, wrong.points]).to(distance.device)
    if len(points):
        # What is not finite is replaced, so that one bad distance cannot spoil anything else.
        distance = torch.where(torch.isfinite(distance), distance, points[0]).clamp(points.min(), points.max())
    return LogDensities(_log_of(right, distance), _log_of(wrong, distance))


def _log_of(density: Density, distance: Tensor) -> Tensor:
    if not density.known:
        return torch.full_like(distance, -torch.inf)
    return log_density(density.points.to(distance.device), density.bandwidth, distance)


def _pack(kind: str, densities: Sequence[Density]) -> dict[str, Tensor]:
    return {
        f"{kind}_points": torch.cat([density.points for density in densities]).cpu(),
        f"{kind}_count": torch.tensor([len(density.points) for density in densities]),
        f"{kind}_bandwidth": torch.tensor([density.bandwidth for density in densities], dtype=torch.float64),
    }


def _unpack(kind: str, state: dict[str, Tensor]) -> tuple[Density, ...]:
    counts = state[f"{kind}_count"].tolist()
    points, bandwidths = state[f"{kind}_points"], state[f"{kind}_bandwidth"].tolist()
    if sum(counts) != len(points) or len(counts) != len(bandwidths):
        raise ConfigurationError(
            f"the state of the {kind} densities does not fit together: counts {counts}, {len(points)} points, "
            f"{len(bandwidths)} bandwidths; pass what state() returned"
        )
    return tuple(Density(part, b) for part, b in zip(points.split(counts), bandwidths, strict=True))
