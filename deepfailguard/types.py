"""The records that cross the borders between packages.

Shapes: B inputs, N versions, K classes. A version that gave no answer has the label -1
(`NO_ANSWER`) and the failure probability 1; every rule must leave it out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor

from deepfailguard.errors import ConfigurationError, EmptyReceiptError

__all__ = ["NO_ANSWER", "Bounds", "Change", "Decision", "Distances", "Evidence", "Need", "Receipt", "Rehearsed"]

NO_ANSWER: Final = -1

Need = Literal["distances", "logits", "features", "stability"]
"""What evidence may hold besides labels: distances cost a search or a gradient, stability a forward pass for each of
a few changes of the input, the others nothing but memory."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """The smallest and the largest value that an input may have.

    >>> Bounds(0.0, 1.0).width
    1.0
    """

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ConfigurationError(f"bounds need low < high, got low={self.low}, high={self.high}")

    @property
    def width(self) -> float:
        """Distance between the ends."""
        return self.high - self.low

    def outside(self, images: Tensor) -> Tensor:
        """Which of the images (B, ...) have a value that is not finite or not in the bounds: (B,) bool."""
        # One reduction per end instead of element-wise masks: NaN fails both comparisons.
        flat = images.flatten(1)
        return ~((flat.amin(1) >= self.low) & (flat.amax(1) <= self.high))


@dataclass(frozen=True, slots=True)
class Distances:
    """Boundary distances of one version.

    Attributes:
        labels: (B,) int64, the version's answers to the unchanged inputs.
        size: (B,) float32 >= 0, size of the smallest found change that flips the answer;
            it means nothing where none was found.
        found: (B,) bool, whether the search crossed the boundary.
    """

    labels: Tensor
    size: Tensor
    found: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Any) -> "Distances":
        return Distances(self.labels[index], self.size[index], self.found[index])

    @classmethod
    def concatenate(cls, parts: "list[Distances]") -> "Distances":
        """Several batches as one."""
        return cls(
            labels=torch.cat([part.labels for part in parts]),
            size=torch.cat([part.size for part in parts]),
            found=torch.cat([part.found for part in parts]),
        )


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of each version's answer to each input without the truth.

    What costs something extra is there only where somebody asked for it.

    Attributes:
        labels: (B, N) int64 in [-1, K), -1 where the version did not answer.
        distance: (B, N) float32 >= 0, boundary distance; meaningless where `found` is False.
        found: (B, N) bool.
        logits: (B, N, K) float32; zero where the version did not answer. None if nobody asked for it.
        features: of each version (B, F_n) float32, what its last layer got. None if nobody asked for it.
        stability: (B, N) float32 in [0, 1], mean probability that the version still gives its answer to slightly
            changed inputs; 0 where it did not answer, NaN where it answered but failed on the changed inputs. None if
            nobody asked for it.
    """

    labels: Tensor
    distance: Tensor
    found: Tensor
    logits: Tensor | None = None
    features: tuple[Tensor, ...] | None = None
    stability: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Any) -> "Evidence":
        """Select inputs: the index works on the first dimension of every field."""
        return Evidence(
            self.labels[index],
            self.distance[index],
            self.found[index],
            None if self.logits is None else self.logits[index],
            None if self.features is None else tuple(each[index] for each in self.features),
            None if self.stability is None else self.stability[index],
        )

    @property
    def versions(self) -> int:
        """How many versions there are: N."""
        return int(self.labels.shape[1])

    @property
    def answered(self) -> Tensor:
        """(B, N) bool, whether the version answered."""
        return self.labels != NO_ANSWER

    def of_versions(self, columns: list[int]) -> "Evidence":
        """Evidence of some of the versions only."""
        return Evidence(
            self.labels[:, columns],
            self.distance[:, columns],
            self.found[:, columns],
            None if self.logits is None else self.logits[:, columns],
            None if self.features is None else tuple(self.features[column] for column in columns),
            None if self.stability is None else self.stability[:, columns],
        )

    def cpu(self) -> "Evidence":
        """The same on the CPU."""
        return Evidence(
            self.labels.cpu(),
            self.distance.cpu(),
            self.found.cpu(),
            None if self.logits is None else self.logits.cpu(),
            None if self.features is None else tuple(each.cpu() for each in self.features),
            None if self.stability is None else self.stability.cpu(),
        )

    @classmethod
    def stack(cls, distances: list[Distances]) -> "Evidence":
        """One column per version from each version's distances on the same inputs."""
        return cls(
            labels=torch.stack([d.labels for d in distances], dim=1),
            distance=torch.stack([d.size for d in distances], dim=1),
            found=torch.stack([d.found for d in distances], dim=1),
        )

    @classmethod
    def concatenate(cls, parts: "Sequence[Evidence]") -> "Evidence":
        """Several batches of the same versions as one."""
        logits = [part.logits for part in parts if part.logits is not None]
        features = [part.features for part in parts if part.features is not None]
        stability = [part.stability for part in parts if part.stability is not None]
        return cls(
            torch.cat([part.labels for part in parts]),
            torch.cat([part.distance for part in parts]),
            torch.cat([part.found for part in parts]),
            torch.cat(logits) if len(logits) == len(parts) else None,
            tuple(map(torch.cat, zip(*features, strict=True))) if len(features) == len(parts) else None,
            torch.cat(stability) if len(stability) == len(parts) else None,
        )


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """Evidence on R changed calibration inputs: what versions do when service is not like calibration.

    Attributes:
        evidence: (R, N).
        truth: (R,) int64.
        source: (R,) int64, the calibration input that each was made from.
    """

    evidence: Evidence
    truth: Tensor
    source: Tensor

    @classmethod
    def concatenate(cls, parts: "Sequence[Rehearsed]") -> "Rehearsed":
        """Several kinds of change as one."""
        return cls(
            Evidence.concatenate([part.evidence for part in parts]),
            torch.cat([part.truth for part in parts]),
            torch.cat([part.source for part in parts]),
        )


@dataclass(frozen=True, slots=True)
class Decision:
    """One answer per input.

    Attributes:
        labels: (B,) int64 in [-1, K); the answer that the rule prefers even where it abstains,
            -1 only where no version answered.
        failure_probability: (B,) in [0, 1], that of the chosen answer.
        weights: (B, N) >= 0, sums to 1 per input (to 0 where no version answered).
        abstained: (B,) bool.
    """

    labels: Tensor
    failure_probability: Tensor
    weights: Tensor
    abstained: Tensor


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that a fault changed.

    Attributes:
        where: what was changed, e.g. ``recipe.learning_rate`` or ``layers.3.weight``.
        before: its value (or a summary of it) before the fault.
        after: its value (or a summary of it) after the fault.
        count: how many elements were changed (>= 1).
    """

    where: str
    before: str
    after: str
    count: int = 1


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a fault changed. It cannot be empty: a fault that changed nothing is an error.

    Attributes:
        fault: the fault's name.
        settings: JSON description of the fault.
        seed: the seed it was applied with.
        changes: at least one change.
    """

    fault: str
    settings: dict[str, Any]
    seed: int
    changes: tuple[Change, ...]

    def __post_init__(self) -> None:
        if not any(change.count > 0 for change in self.changes):
            raise EmptyReceiptError(
                f"fault {self.fault!r} with {self.settings} changed nothing; "
                "raise its rate or count, or choose a target that it fits"
            )

    def __str__(self) -> str:
        shown = "; ".join(f"{c.where}: {c.before} -> {c.after} ({c.count})" for c in self.changes[:4])
        rest = len(self.changes) - 4
        return f"{self.fault}: {shown}" + (f"; and {rest} more" if rest > 0 else "")
