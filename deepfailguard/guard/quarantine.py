"""Whose answers count: versions that broke in service are set apart, versions that only saw changed inputs are not."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor

from deepfailguard.errors import ConfigurationError
from deepfailguard.guard.watch_report import DISAGREEMENT, Quarantined, WatchReport
from deepfailguard.guard.watching import VersionWatch

__all__ = ["Quarantine", "most_in_quarantine"]

_STATE = "quarantined"


class Quarantine:
    """Watches versions, and sets those apart that changed alone.

    ==========================================  =================================================================
    case                                        what happens
    ==========================================  =================================================================
    alarm, cause "versions"                     the versions whose scores changed are set apart, at once; where no
                                                score did, those whose disagreement changed
    alarm, cause "inputs" or "unclear"          nobody is
    as many as may be are set apart             no further one is; its alarm stands
    most others' scores alarm soon after        it was the inputs, which some versions show sooner: if the others'
                                                changes began before the alarm, the version is taken back
    acknowledged, while set apart               its alarm no longer stands, and it is taken back
    ==========================================  =================================================================

    At most half of the versions are set apart, and never the last one. Not to be called from two threads at once.

    Args:
        watch: fitted, and used by nobody else.
        labels: (n, N) int64, the answers to calibration inputs that it was fitted with.

    Attributes:
        since_: by position of the versions that are set apart, the first input that they do not answer.
    """

    def __init__(self, watch: VersionWatch, labels: Tensor) -> None:
        self.watch = watch
        self.labels = labels
        self.since_: dict[int, int] = {}
        self._away: frozenset[int] = frozenset()

    @property
    def active(self) -> list[int]:
        """Positions of the versions whose answers count."""
        without = self.since_.keys() | self._away
        return [version for version in range(self.labels.shape[1]) if version not in without]

    def leave_out(self, versions: Iterable[int]) -> None:
        """Say which versions, by position, do not answer for other reasons from now on; nobody blames them for that.

        Where no version is left, none is watched: `see` must not be called then.
        """
        away = frozenset(versions)
        if away != self._away:
            self._away = away
            self._watch_active()

    def see(self, labels: Tensor, scores: Mapping[str, Tensor]) -> WatchReport:
        """Watch a batch of B >= 0 inputs; whose answers to this very batch count is known afterwards.

        Args:
            labels: (B, N) int64, -1 for no answer; those of versions that are set apart do not matter.
            scores: (B, N) floating per name.

        Raises:
            DataFormatError: other shapes or other names than in calibration; nothing was watched then.
        """
        report = self.watch.update(labels, scores)
        apart = {version: since for version, since in self.since_.items() if not _shared(report, version)}
        if report.cause == "versions":
            free = most_in_quarantine(len(report.names)) - len(apart | dict.fromkeys(self._away))
            apart |= dict.fromkeys(_blamed(report, apart)[:free], report.inputs - len(labels))
        self._set_apart(apart)
        return self.report()

    def report(self) -> WatchReport:
        """How the versions stand, and who is set apart."""
        report = self.watch.report()
        told = sorted(self.since_.items(), key=lambda each: each[1])
        return replace(report, quarantined=tuple(Quarantined(v, report.names[v], since) for v, since in told))

    def release(self, versions: Iterable[int]) -> None:
        """Let versions answer again that were repaired: what was seen of them is forgotten."""
        repaired = list(versions)
        self.watch.renew(repaired)
        self._set_apart({version: since for version, since in self.since_.items() if version not in repaired})

    def acknowledge(self, versions: Sequence[int] | None = None) -> None:
        """Take note of alarms: they no longer stand, and whom they set apart answers again."""
        self.watch.acknowledge(versions)
        gone = self.since_ if versions is None else versions
        self._set_apart({version: since for version, since in self.since_.items() if version not in gone})

    def state(self) -> dict[str, Tensor]:
        """What was learned and seen, as named tensors."""
        since = [self.since_.get(version, -1) for version in range(self.labels.shape[1])]
        return {**self.watch.state(), _STATE: torch.tensor(since)}

    def with_state(self, state: dict[str, Tensor]) -> Self:
        """Take back what `state` returned; returns itself."""
        since = state.get(_STATE)
        if since is None or since.shape != (self.labels.shape[1],):
            raise ConfigurationError("this is no state of a quarantine of as many versions; pass what state() returned")
        self.watch.with_state({name: tensor for name, tensor in state.items() if name != _STATE})
        self.since_ = {version: first for version, first in enumerate(since.tolist()) if first >= 0}
        return self

    def _set_apart(self, since: dict[int, int]) -> None:
        if since.keys() != self.since_.keys():
            self.since_ = since
            self._watch_active()

    def _watch_active(self) -> None:
        if self.active:
            self.watch.watch_only(self.active, self.labels)


def most_in_quarantine(versions: int) -> int:
    """How many of N >= 1 versions may be set apart: at most half of them, and never the last one.

    >>> [most_in_quarantine(versions) for versions in (1, 2, 3, 4, 5)]
    [0, 1, 1, 2, 2]
    """
    return versions // 2


def _blamed(report: WatchReport, apart: Collection[int]) -> list[int]:
    """Versions that are not set apart yet and changed alone, in the order of their alarms.

    Those whose scores changed, if there are any: a broken version changes the others' disagreement too.
    """
    alarms = [alarm for alarm in report.alarms if alarm.version not in apart]
    telling = [alarm for alarm in alarms if alarm.statistic != DISAGREEMENT] or alarms
    return list(dict.fromkeys(alarm.version for alarm in telling))


def _shared(report: WatchReport, version: int) -> bool:
    """Whether most versions' scores changed not later than the version's alarm was raised: it was the inputs."""
    if report.cause != "inputs":
        return False
    noticed = min(alarm.raised for alarm in report.of(version))
    scores = [alarm for alarm in report.alarms if alarm.statistic != DISAGREEMENT]
    others = {alarm.version for alarm in scores if alarm.version != version and alarm.since <= noticed}
    return len(others) + 1 > len(report.names) / 2
