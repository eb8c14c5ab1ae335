"""Verdicts of some versions in their places among all, so that nothing changes its shape for who is left out."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from deepfailguard.guard.asking import Answers
from deepfailguard.guard.verdict import Verdict, VersionHealth
from deepfailguard.guard.watch_report import Quarantined, WatchReport
from deepfailguard.types import NO_ANSWER, Distances

__all__ = ["apart", "in_places", "silence"]


def silence(classes: int, inputs: int, name: str = "") -> Answers:
    """Of a version that was not asked."""
    nothing = torch.zeros(inputs)
    distances = Distances(torch.full((inputs,), NO_ANSWER), nothing, nothing.bool())
    logits = torch.zeros(inputs, classes, dtype=torch.float64)
    return Answers(logits, torch.zeros(inputs, 0), distances, VersionHealth(name, 0, 0))


def in_places(verdict: Verdict, active: Sequence[int], others: Mapping[int, VersionHealth]) -> Verdict:
    """The verdict of some versions in their places among all N; the others, by position, have no answer."""
    if not others:
        return verdict
    versions = len(active) + len(others)
    health = dict(zip(active, verdict.health, strict=True)) | dict(others)
    return replace(
        verdict,
        weights=_columns(verdict.weights, active, versions, 0.0),
        version_labels=_columns(verdict.version_labels, active, versions, NO_ANSWER),
        version_failure_probability=_columns(verdict.version_failure_probability, active, versions, 1.0),
        distance=_columns(verdict.distance, active, versions, 0.0),
        found=_columns(verdict.found, active, versions, False),
        health=tuple(health[version] for version in range(versions)),
    )


def apart(report: WatchReport) -> dict[int, VersionHealth]:
    """The health of the versions in quarantine, by position."""
    return {each.version: _health(each, report) for each in report.quarantined}


def _health(quarantined: Quarantined, report: WatchReport) -> VersionHealth:
    reasons = "; ".join(str(alarm).removeprefix(f"{alarm.name} ") for alarm in report.of(quarantined.version))
    told = f"in quarantine since input {quarantined.since}: it {reasons}"
    return VersionHealth(quarantined.name, 0, 0, told, state="quarantined")


def _columns(values: Tensor, places: Sequence[int], columns: int, otherwise: float) -> Tensor:
    """The columns (B, n) in their places among N."""
    whole = torch.full((len(values), columns), otherwise, dtype=values.dtype)
    whole[:, list(places)] = values.cpu()
    return whole
