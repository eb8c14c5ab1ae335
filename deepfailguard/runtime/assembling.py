"""Putting a runtime together: sources, runners, members."""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from deepfailguard.errors import ConfigurationError
from deepfailguard.guard.guarded import GuardedPredictor
from deepfailguard.guard.loading import in_order
from deepfailguard.guard.saved import GuardCard, SavedGuard
from deepfailguard.runtime.base import Source
from deepfailguard.runtime.breaker import Breaker
from deepfailguard.runtime.housing import Housing, InProcessHousing, Isolation, housing_for
from deepfailguard.runtime.member import Member
from deepfailguard.runtime.roster import Roster
from deepfailguard.runtime.settings import Settings
from deepfailguard.runtime.sources import FolderSource, MemorySource
from deepfailguard.versions.version import Version

__all__ = ["Assembly", "sources_of"]


class Assembly:
    """Makes the members of a runtime.

    Args:
        guard: fitted.
        isolation: where versions run.
        settings: of the runtime.

    Raises:
        ConfigurationError: the settings do not fit the guard.
    """

    def __init__(
        self, guard: GuardedPredictor | SavedGuard, isolation: Isolation | Housing, settings: Settings
    ) -> None:
        self.saved = guard if isinstance(guard, SavedGuard) else guard.saved
        self.versions: Sequence[Version] = () if isinstance(guard, SavedGuard) else guard.versions
        self.cache = None if isinstance(guard, SavedGuard) else guard.cache
        self.settings = settings
        _check(self.saved.card, settings)
        self._house = housing_for(isolation)

    def roster(self, sources: Sequence[Source] | None, folder: Path | None) -> Roster:
        """All versions of the guard, not started yet.

        Args:
            sources: of each; copies of the guard's own versions if None.
            folder: keeps fitted decisions.
        """
        if sources is None:
            sources = [MemorySource(version) for version in self.versions]
        card, canary = self.saved.card, self.saved.canary
        if len(sources) != len(card.names):
            raise ConfigurationError(f"the guard has {len(card.names)} versions, got sources for {len(sources)}")
        members = []
        for column, (name, source) in enumerate(zip(card.names, sources, strict=True)):
            member = self._member(name, card.fingerprints[column], source)
            member.accuracy = card.calibration_accuracy[column]
            member.shadow = name in self.settings.standby
            member.told = member.state
            member.expected = None if canary is None else canary.logits[:, column]
            members.append(member)
        return Roster.of(self.saved, members, self.settings.watch, folder)

    def newcomer(self, version: Version) -> Member:
        """A version that does not belong to the guard, as a shadow."""
        member = self._member(version.name, version.fingerprint, MemorySource(version))
        member.shadow, member.told = True, "shadow"
        return member

    def close(self) -> None:
        """Nobody needs what its runners share any more."""
        if isinstance(self._house, InProcessHousing):
            self._house.close()

    def _member(self, name: str, fingerprint: str, source: Source) -> Member:
        return Member(
            name=name,
            classes=len(self.saved.card.classes),
            fingerprint=fingerprint,
            accuracy=math.nan,
            source=source,
            runner=self._house(name, source, self.saved.distance, self.cache),
            breaker=Breaker(self.settings.first_probe, self.settings.longest_probe),
            since=time.time(),
        )


def sources_of(
    folder: Path,
    card: GuardCard,
    trusted: Sequence[str],
    models: Sequence[nn.Module] | Mapping[str, nn.Module] | None,
    device: torch.device | str,
) -> list[Source]:
    """Where the versions of a saved guard are.

    Args:
        folder: of the guard.
        card: of the guard.
        trusted: packages whose architectures may be rebuilt.
        models: of the versions' architectures, in order or by name, where deepfailguard cannot rebuild them.
        device: where the versions shall run.
    """
    given = in_order(models, card.names)
    return [FolderSource(folder, card, position, trusted, model, device) for position, model in enumerate(given)]


def _check(card: GuardCard, settings: Settings) -> None:
    serving = [name for name in card.names if name not in settings.standby]
    unknown = set(settings.standby) - set(card.names)
    if unknown:
        raise ConfigurationError(
            f"there is no version {', '.join(sorted(unknown))} to stand by; the guard has {', '.join(card.names)}"
        )
    if len(serving) < settings.least_versions:
        raise ConfigurationError(
            f"{settings.least_versions} versions must answer at least, but only {len(serving)} serve; "
            "lower least_versions, or fit a guard of more versions"
        )
    if settings.fallback is not None and not 0 <= settings.fallback < len(card.classes):
        raise ConfigurationError(f"the fallback must be a label in [0, {len(card.classes)}), got {settings.fallback}")
