"""Evaluations of a guard: from cached evidence without any model, or live."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from deepfailguard.data.base import Splits
from deepfailguard.errors import CacheMissError, ConfigurationError
from deepfailguard.evaluation.records import Evaluation
from deepfailguard.guard.asking import piece_size
from deepfailguard.guard.guarded import GuardedPredictor
from deepfailguard.guard.judging import judge
from deepfailguard.guard.saved import GuardCard, SavedGuard
from deepfailguard.guard.verdict import Verdict
from deepfailguard.pipeline.evidence import read_evidence
from deepfailguard.progress import track
from deepfailguard.types import Decision, Evidence

__all__ = ["evaluate_cached", "evaluate_live"]


@dataclass(frozen=True, slots=True)
class _Judged:
    evidence: Evidence
    failure_probability: Tensor
    decision: Decision
    problems: dict[str, str]


def evaluate_cached(saved: SavedGuard, splits: Splits, cache: Path) -> Evaluation:
    """Judge the test inputs from cached evidence; no model runs.

    Raises:
        CacheMissError: a distance was never computed.
    """
    check_guard(saved.card, splits)
    if saved.distance is None:
        raise ConfigurationError(
            "this guard's predictor uses no distances, so there is nothing to read; evaluate it live"
        )
    evidence = read_evidence(saved.card.identities, splits.test.images, saved.distance, cache)
    judgement = judge(evidence, saved.predictor, saved.decision)
    judged = _Judged(evidence, judgement.failure_probability, judgement.decision, {})
    return _evaluation("cached", saved, splits, judged, _calibration_evidence(saved, splits, cache))


def evaluate_live(guard: GuardedPredictor, splits: Splits) -> Evaluation:
    """Ask the guard for every test input, as a server would."""
    check_guard(guard.saved.card, splits)
    pieces = splits.test.images.split(piece_size(guard.saved.distance))
    verdicts = [guard(piece) for piece in track(pieces, len(pieces), "asking the guard")]
    return _evaluation("live", guard.saved, splits, _join(verdicts), None)


def check_guard(card: GuardCard, splits: Splits) -> None:
    """Refuse to evaluate a guard on data of other classes or another shape."""
    if card.classes != splits.classes:
        raise ConfigurationError(
            f"the guard answers for the classes {', '.join(card.classes[:5])}, ... ({len(card.classes)}), "
            f"data set {splits.name!r} has {', '.join(splits.classes[:5])}, ... ({len(splits.classes)})"
        )
    if card.input_shape != splits.input_shape:
        raise ConfigurationError(
            f"the guard takes images of shape {card.input_shape}, data set {splits.name!r} has {splits.input_shape}"
        )


def _join(verdicts: Sequence[Verdict]) -> _Judged:
    evidence = Evidence(
        labels=torch.cat([verdict.version_labels for verdict in verdicts]),
        distance=torch.cat([verdict.distance for verdict in verdicts]),
        found=torch.cat([verdict.found for verdict in verdicts]),
    )
    decision = Decision(
        labels=torch.cat([verdict.labels for verdict in verdicts]),
        failure_probability=torch.cat([verdict.failure_probability for verdict in verdicts]),
        weights=torch.cat([verdict.weights for verdict in verdicts]),
        abstained=torch.cat([verdict.abstained for verdict in verdicts]),
    )
    probability = torch.cat([verdict.version_failure_probability for verdict in verdicts])
    return _Judged(evidence, probability, decision, _problems(verdicts))


def _problems(verdicts: Sequence[Verdict]) -> dict[str, str]:
    """What went wrong, by version: how much was not answered and why at first, or what else was the matter."""
    problems = {}
    for states in zip(*(verdict.health for verdict in verdicts), strict=True):
        name, missing = states[0].name, sum(state.asked - state.answered for state in states)
        if missing:
            first = next(state.problem for state in states if state.answered < state.asked)
            problems[f"{name} failed"] = f"{missing} inputs without an answer; {first}"
        elif not all(state.healthy for state in states):
            problems[f"{name} had trouble"] = next(state.problem for state in states if not state.healthy)
    return problems


def _calibration_evidence(saved: SavedGuard, splits: Splits, cache: Path) -> Evidence | None:
    """For the pictures only, so it is left out if it is not what the guard was fitted on."""
    if saved.distance is None or splits.calibration.fingerprint != saved.card.calibration_fingerprint:
        return None
    try:
        return read_evidence(saved.card.identities, splits.calibration.images, saved.distance, cache)
    except CacheMissError:
        return None


def _evaluation(
    how: str, saved: SavedGuard, splits: Splits, judged: _Judged, calibration: Evidence | None
) -> Evaluation:
    card = saved.card
    return Evaluation(
        title=f"{splits.name}: {len(card.names)} versions, {how}",
        names=card.names,
        faults=tuple("" if c is None else "+".join(c.faults) for c in card.cards),
        classes=splits.classes,
        bounds=splits.bounds,
        images=splits.test.images,
        truth=splits.test.labels,
        evidence=judged.evidence,
        failure_probability=judged.failure_probability,
        decision=judged.decision,
        calibration_accuracy=torch.tensor(card.calibration_accuracy, dtype=torch.float64),
        calibration=calibration,
        calibration_truth=None if calibration is None else splits.calibration.labels,
        facts={
            "data set": f"{splits.name}, {len(splits.test)} test and {card.calibration_size} calibration inputs",
            "predictor": type(saved.predictor).__name__,
            "decision": getattr(getattr(saved.decision, "func", saved.decision), "__name__", repr(saved.decision)),
            "distance": "none" if saved.distance is None else repr(saved.distance),
            **judged.problems,
        },
    )
