"""From the pool's versions and their cached evidence to the members of a study."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from deepfailguard.boundary.base import DistanceEstimator
from deepfailguard.boundary.searching import within
from deepfailguard.data.base import ImageSet, Splits
from deepfailguard.data.splitting import take_first
from deepfailguard.errors import ConfigurationError
from deepfailguard.evaluation.records import Member
from deepfailguard.evaluation.report.writing import write_study
from deepfailguard.evaluation.study import StudyRow, StudySummary, run_study, summarise_study
from deepfailguard.pipeline.evidence import cache_distances, check_same_data, read_evidence, with_test_faults
from deepfailguard.pipeline.guarding import fit_distance
from deepfailguard.predictor.base import FailurePredictor
from deepfailguard.versions.card import IdentityCard
from deepfailguard.versions.pool import Pool

__all__ = ["Study", "StudyPlan", "prepare_members", "study"]


@dataclass(frozen=True, slots=True)
class StudyPlan:
    """What a study combines.

    Attributes:
        cards: sound and faulty versions of the pool.
        splits: the data set.
        distance: tells boundary distances.
        cache: folder of distances.
        test_faults: each is given to the test inputs of the sound versions and makes members of its own.
        seed: of the test faults.
    """

    cards: Sequence[IdentityCard]
    splits: Splits
    distance: DistanceEstimator
    cache: Path
    test_faults: Sequence[Any] = field(default=())
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Study:
    """A finished study.

    Attributes:
        title: what was studied.
        rows: one per ensemble and rule.
        summary: means by setting, size and rule.
    """

    title: str
    rows: list[StudyRow]
    summary: list[StudySummary]

    def write(self, folder: Path) -> Path:
        """Write CSV, JSON, Markdown and HTML; returns the page."""
        rows, summary = [row.as_dict() for row in self.rows], [row.as_dict() for row in self.summary]
        return write_study(rows, summary, self.title, folder)


def study(
    plan: StudyPlan, rules: Mapping[str, FailurePredictor], sizes: Sequence[int], pool: Pool, device: torch.device
) -> Study:
    """Run the whole study; distances that the cache lacks are computed first."""
    members = prepare_members(plan, pool, device)
    splits = plan.splits
    rows = run_study(members, splits.calibration.labels, rules, sizes)
    if not rows:
        families = sorted({member.family for member in members})
        raise ConfigurationError(
            f"no ensemble of sizes {list(sizes)} can be made of {len(members)} versions of the families "
            f"{', '.join(families)}; train more families with scripts/train_model.py"
        )
    title = (
        f"{splits.name}: {len(members)} versions, {len(splits.calibration)} calibration, {len(splits.test)} test inputs"
    )
    return Study(title, rows, summarise_study(rows))


def prepare_members(plan: StudyPlan, pool: Pool, device: torch.device) -> list[Member]:
    """Members of the study; distances that the cache lacks are computed first."""
    check_same_data(plan.cards, plan.splits)
    calibration, test = plan.splits.calibration.images, plan.splits.test.images
    plan = replace(plan, distance=fit_distance(plan.cards, calibration, plan.distance, pool, device, plan.cache))
    cache_distances(plan.cards, {"calibration": calibration, "test": test}, plan.distance, plan.cache, pool, device)
    members = [_member(plan, card, "+".join(card.faults), plan.splits.test) for card in plan.cards]
    sound = [card for card in plan.cards if not card.faults]
    for fault in plan.test_faults:
        inputs = take_first(with_test_faults(plan.splits, [fault], plan.seed).test, len(plan.splits.test))
        images = {f"test with {fault.name}": inputs.images}
        cache_distances(sound, images, plan.distance, plan.cache, pool, device)
        members += [_member(plan, card, fault.name, inputs) for card in sound]
    return members


def _member(plan: StudyPlan, card: IdentityCard, fault: str, test: ImageSet) -> Member:
    calibration = plan.splits.calibration.images
    distance, identity = within(plan.distance, plan.splits.bounds), {card.name: card.fingerprint}
    return Member(
        name=card.name if fault == "+".join(card.faults) else f"{card.name} under {fault}",
        family=card.name.rsplit("-s", 1)[0].split("+")[0],
        fault=fault,
        calibration=read_evidence(identity, calibration, distance, plan.cache),
        test=read_evidence(identity, test.images, distance, plan.cache),
        truth=test.labels,
    )
