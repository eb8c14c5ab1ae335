"""How much work the search puts into an image: three named settings."""

import math
from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["EFFORTS", "Effort", "EffortName"]

EffortName = Literal["fast", "balanced", "tight"]


@dataclass(frozen=True, slots=True)
class Effort:
    """Settings of the search.

    Attributes:
        rivals: of K classes at most so many times their square root are tried as the first one to cross to, and
            at least one.
        rival_ratio: a class is tried if its margin is at most so many times the smallest (>= 1).
        spread: a trail is followed while the change that it plans is at most so many times the smallest
            one planned for the image (>= 1).
        steps: at most so many gradients per trail after the first (>= 1).
        gain: a trail ends when its next change promises to be smaller than the best one by less than this share.
        patience: so many such steps in a row are forgiven.
        slack: how much larger than the best one the change may be in the first steps, where averaging still pays.
        recency: weight of the newest normal in step k is recency / (k + recency); 1 is the plain mean.
        overshoot: a step goes so many times as far as the predicted boundary (> 1).
        learning: share of the newest observation in the trust in predictions.
        closing: forward passes that draw the result closer to the boundary on its ray (>= 1).
    """

    rivals: float
    rival_ratio: float
    spread: float
    steps: int
    gain: float
    patience: int
    slack: float
    recency: float
    overshoot: float
    learning: float
    closing: int

    def rivals_of(self, classes: int) -> int:
        """How many of so many classes (>= 2) are tried at most."""
        return min(max(1, round(self.rivals * math.sqrt(classes))), classes - 1)


EFFORTS: Final[dict[EffortName, Effort]] = {
    "fast": Effort(
        rivals=0.0,
        rival_ratio=1.0,
        spread=1.0,
        steps=1,
        gain=0.1,
        patience=0,
        slack=0.0,
        recency=1.0,
        overshoot=1.05,
        learning=1.0,
        closing=1,
    ),
    "balanced": Effort(
        rivals=1.0,
        rival_ratio=1.3,
        spread=1.02,
        steps=8,
        gain=0.1,
        patience=0,
        slack=0.0,
        recency=1.0,
        overshoot=1.01,
        learning=0.5,
        closing=1,
    ),
    "tight": Effort(
        rivals=1.3,
        rival_ratio=2.0,
        spread=1.2,
        steps=40,
        gain=0.002,
        patience=2,
        slack=0.3,
        recency=3.0,
        overshoot=1.01,
        learning=0.5,
        closing=2,
    ),
}
