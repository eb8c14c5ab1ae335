"""From the answers that count to a verdict with a place for every version."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from deepfailguard.guard.answering import problems_of, verdict_of
from deepfailguard.guard.asking import Answers
from deepfailguard.guard.places import in_places, silence
from deepfailguard.guard.saved import SavedGuard
from deepfailguard.guard.verdict import Ground, Verdict, VersionHealth
from deepfailguard.predictor.base import SettlingPredictor
from deepfailguard.runtime.roster import Roster
from deepfailguard.runtime.settings import Settings
from deepfailguard.types import NO_ANSWER

__all__ = ["unanswered", "verdict_on"]


def verdict_on(
    roster: Roster,
    told: Mapping[int, Answers],
    others: Mapping[int, VersionHealth],
    good: Tensor,
    batch: int,
    settings: Settings,
) -> Verdict:
    """The verdict on a batch of B inputs.

    Args:
        roster: who there is.
        told: answers that count to the G good inputs, by position.
        others: health of all other versions, by position.
        good: (G,) positions of the good inputs.
        batch: B.
        settings: what is demanded.
    """
    if not told:
        return unanswered(roster, others, good, batch, settings)
    columns, base = sorted(told), roster.base
    guard = roster.derived.get(columns)
    if guard is not None:
        ground: Ground = "all versions" if columns == base else "versions left"
        answers = [told[column] for column in columns]
        verdict = in_places(verdict_of(guard, answers, good, batch), columns, others)
    else:
        ground = "silent versions"
        verdict = _with_silence(roster, base, told, others, good, batch)
    return _demanding(replace(verdict, ground=ground), len(columns), guard or roster.saved, settings)


def unanswered(
    roster: Roster, health: Mapping[int, VersionHealth], good: Tensor, batch: int, settings: Settings
) -> Verdict:
    """The verdict where no version answered, or no predictor could judge: the declared fallback for good inputs."""
    card, columns = roster.card, len(roster.calibrated)
    labels, abstained = torch.full((batch,), NO_ANSWER), torch.ones(batch, dtype=torch.bool)
    if settings.fallback is not None:
        labels[good], abstained[good] = settings.fallback, False
    nothing = torch.zeros(batch, columns)
    return Verdict(
        labels=labels,
        failure_probability=torch.ones(batch, dtype=torch.float64),
        abstained=abstained,
        weights=nothing.double(),
        probabilities=torch.zeros(batch, len(card.classes), dtype=torch.float64),
        version_labels=torch.full((batch, columns), NO_ANSWER),
        version_failure_probability=torch.ones(batch, columns, dtype=torch.float64),
        distance=nothing,
        found=nothing.bool(),
        health=tuple(health[column] for column in range(columns)),
        problems=problems_of(card, good, batch),
        classes=card.classes,
        measured=roster.saved.distance is not None,
        ground="fallback",
    )


def _with_silence(
    roster: Roster,
    base: list[int],
    told: Mapping[int, Answers],
    others: Mapping[int, VersionHealth],
    good: Tensor,
    batch: int,
) -> Verdict:
    """The decision for all that should serve, to which those that are missing said nothing."""
    guard = roster.derived.get(base) or roster.saved
    columns = base if len(guard.card.names) == len(base) else list(range(len(roster.calibrated)))
    silent = silence(len(roster.card.classes), len(good))
    answers = [told.get(column, silent) for column in columns]
    verdict = verdict_of(guard, answers, good, batch)
    outside = {column: health for column, health in others.items() if column not in columns}
    whole = in_places(verdict, columns, outside)
    named = [others.get(column, health) for column, health in enumerate(whole.health)]
    return replace(whole, health=tuple(named))


def _demanding(verdict: Verdict, answering: int, guard: SavedGuard, settings: Settings) -> Verdict:
    """The verdict, abstaining where fewer versions answered than must."""
    if answering < settings.least_versions:
        return replace(verdict, abstained=torch.ones_like(verdict.abstained), ground="too few versions")
    if isinstance(guard.predictor, SettlingPredictor):  # it leaves versions unasked on purpose
        return verdict
    few = (verdict.version_labels != NO_ANSWER).sum(1) < settings.least_versions
    return replace(verdict, abstained=verdict.abstained | few.to(verdict.abstained.device))
