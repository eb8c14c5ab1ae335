"""Who belongs to a guard at run time, and what there is to judge their answers by."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from deepfailguard.errors import ConfigurationError
from deepfailguard.guard.canary import Canary
from deepfailguard.guard.judging import single_position
from deepfailguard.guard.quarantine import Quarantine
from deepfailguard.guard.saved import GuardCard, SavedGuard
from deepfailguard.guard.statistics import scores_of
from deepfailguard.guard.watch_report import WatchReport
from deepfailguard.guard.watched import scores_for
from deepfailguard.guard.watching import LEAST_CALIBRATION, VersionWatch
from deepfailguard.predictor.base import SettlingPredictor
from deepfailguard.runtime.derived import DerivedGuards
from deepfailguard.runtime.member import Member
from deepfailguard.seeding import generator
from deepfailguard.types import Evidence

__all__ = ["Roster", "canary_images"]

_CANARIES = 8


@dataclass(frozen=True, slots=True, eq=False)
class Roster:
    """The versions of a guard, and what was learned of them; exchanged as a whole.

    Attributes:
        saved: the guard of all N calibrated versions.
        members: N in the order of every (B, N) tensor, then shadows that were not calibrated.
        derived: guards of some of the versions.
        quarantine: watches the versions; None where they are not watched.
        scores: what is watched.
        canary: (M, C, H, W) float32 on the CPU, inputs on which versions are tried.
    """

    saved: SavedGuard
    members: tuple[Member, ...]
    derived: DerivedGuards
    quarantine: Quarantine | None
    scores: tuple[str, ...]
    canary: Tensor

    @classmethod
    def of(cls, saved: SavedGuard, members: Sequence[Member], watch: bool, folder: Path | None) -> "Roster":
        """A roster that has seen nothing yet.

        Args:
            saved: the guard.
            members: its N versions, then others.
            watch: whether to watch versions, if that can be done.
            folder: keeps fitted decisions; None to keep them in memory.
        """
        quarantine, scores = _watch_over(saved) if watch else (None, ())
        return cls(saved, tuple(members), DerivedGuards(saved, folder), quarantine, scores, canary_images(saved))

    @property
    def card(self) -> GuardCard:
        """What the guard is."""
        return self.saved.card

    @property
    def calibrated(self) -> tuple[Member, ...]:
        """The N members that the guard learned of."""
        return self.members[: len(self.card.names)]

    @property
    def base(self) -> list[int]:
        """Positions of the versions whose answers count while they are sound."""
        return [position for position, member in enumerate(self.calibrated) if not member.shadow]

    def member(self, name: str) -> Member:
        """The member of this name.

        Raises:
            ConfigurationError: there is none.
        """
        for member in self.members:
            if member.name == name:
                return member
        known = ", ".join(member.name for member in self.members)
        raise ConfigurationError(f"there is no version {name!r}; there are {known}")

    def see(self, evidence: Evidence, counted: Sequence[int]) -> WatchReport | None:
        """Watch what the versions that count answered; None where nobody is watched."""
        if self.quarantine is None:
            return None
        apart = self.quarantine.since_.keys()
        self.quarantine.leave_out(set(range(len(self.calibrated))) - set(counted) - apart)
        if not self.quarantine.active:
            return self.quarantine.report()
        return self.quarantine.see(evidence.labels, scores_of(evidence, self.scores))


def canary_images(saved: SavedGuard) -> Tensor:
    """Inputs to try versions on: those that the guard kept, else made-up ones, the same every time."""
    canary: Canary | None = saved.canary
    if canary is not None:
        return canary.images
    bounds = saved.card.bounds
    drawn = torch.rand(_CANARIES, *saved.card.input_shape, generator=generator(0, "canary"))
    return bounds.low + (bounds.high - bounds.low) * drawn


def _watch_over(saved: SavedGuard) -> tuple[Quarantine | None, tuple[str, ...]]:
    """A watch over the versions, where there can be one, and the scores that it watches."""
    evidence, names, scores = saved.calibration.evidence, saved.card.names, scores_for(saved)
    watchable = not isinstance(saved.predictor, SettlingPredictor) and single_position(saved.decision) is None
    if not watchable or len(evidence) < LEAST_CALIBRATION or (len(names) == 1 and not scores):
        return None, ()
    watch = VersionWatch(scores, names=names, inputs_per_false_alarm=1_000_000.0)
    return Quarantine(watch.fit(evidence.labels, scores_of(evidence, scores)), evidence.labels), scores
