"""Every version of a pool judged by predictors and by single scores."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Final

import torch
from torch import Tensor

from benchmarks.decisions.evidence import PoolEvidence
from benchmarks.decisions.images import CALIBRATION, TEST
from benchmarks.decisions.judging import class_probability
from benchmarks.failing.single_scores import AGREEMENT, agreement, as_failure, single_scores
from deepfailguard.evaluation.failure_prediction import (
    area_under_risk_coverage,
    expected_calibration_error,
    measure_failure_prediction,
)
from deepfailguard.predictor.class_posterior import failure_of
from deepfailguard.predictor.score_calibration import Calibration
from deepfailguard.predictor.score_model import Regression
from deepfailguard.predictor.scores import ScoresPredictor
from deepfailguard.progress import track
from deepfailguard.seeding import generator

__all__ = [
    "ALONE",
    "PREDICTORS",
    "SCORES_ALONE",
    "SCORE_VARIANTS",
    "TOGETHER",
    "UNREHEARSED",
    "Judged",
    "Measures",
    "groups",
    "judge_pool",
    "mean_of",
    "measures_of",
]

TOGETHER: Final = "joint predictor, 3 versions"
ALONE: Final = "joint predictor, alone"
SCORES_ALONE: Final = "scores predictor, alone"
UNREHEARSED: Final = "joint predictor, 3 versions, nothing rehearsed"
PREDICTORS: Final = (TOGETHER, ALONE, SCORES_ALONE)
"""Those that are held to the bars; the one that rehearsed nothing shows what rehearsal costs on usual inputs."""
SCORE_VARIANTS: Final[dict[str, tuple[Regression, Calibration]]] = {
    f"{SCORES_ALONE}, isotonic": ("logistic", "isotonic"),
    f"{SCORES_ALONE}, Venn-Abers": ("logistic", "venn_abers"),
    f"{SCORES_ALONE}, boosting": ("boosting", "none"),
    f"{SCORES_ALONE}, boosting, Venn-Abers": ("boosting", "venn_abers"),
}
"""Other models and calibrations of the same scores; they show what these bring."""
_ENSEMBLE: Final = 3
_SIMULATED: Final = 20


@dataclass(frozen=True, slots=True)
class Measures:
    """How well one judge tells a version's wrong answers from its right ones.

    Attributes:
        auroc: in [0, 1]; NaN unless the version was right and wrong.
        aurc: area under risk against coverage, small is good.
        excess: of that over the area of a judge that knows the truth.
        fpr95: share of right answers flagged with 95 % of the wrong ones; NaN as for `auroc`.
        ece: calibration error; NaN for scores that are no probabilities.
        chance_ece: that of a perfect predictor with the same probabilities, by the luck of so few inputs.
    """

    auroc: float
    aurc: float
    excess: float
    fpr95: float
    ece: float
    chance_ece: float


@dataclass(frozen=True, slots=True)
class Judged:
    """One version of a pool.

    Attributes:
        version: who it is.
        fault: injected; None for a sound version.
        error_rate: share of wrong answers.
        measures: by judge; means over the ensembles that it was in.
    """

    version: str
    fault: str | None
    error_rate: float
    measures: Mapping[str, Measures] = field(repr=False)


def groups(count: int, size: int, draws: int, seed: int) -> list[tuple[int, ...]]:
    """Ensembles in which each of `count` versions takes part at least once for each draw.

    Each draw shuffles them and cuts; the last ensemble is filled up with the first ones.

    >>> [len(set(each)) for each in groups(4, 3, 1, seed=0)]
    [3, 3]
    """
    chosen = []
    for draw in range(draws):
        order = torch.randperm(count, generator=generator(seed, "failure benchmark", draw)).tolist()
        order += order[: -count % size]
        chosen += [tuple(sorted(order[start : start + size])) for start in range(0, len(order), size)]
    return chosen


def judge_pool(pool: PoolEvidence, draws: int, folder: Path, code: str) -> list[Judged]:
    """Judge all versions of a pool.

    Args:
        pool: what its versions say.
        draws: in how many ensembles each takes part, at least.
        folder: of what is kept.
        code: digest of the predictor's code.
    """
    found: dict[int, dict[str, list[Measures]]] = {number: {} for number in range(len(pool.members))}
    for number, name, measures in _judgements(pool, draws, folder, code):
        found[number].setdefault(name, []).append(measures)
    truth, judged = pool.truth(TEST), []
    for number, measures_by_judge in found.items():
        member, wrong = pool.members[number], pool.of(TEST, [number]).labels[:, 0] != truth
        means = {name: mean_of(each) for name, each in measures_by_judge.items()}
        judged.append(Judged(f"{member} {pool.seed}", member.fault, float(wrong.double().mean()), means))
    return judged


def measures_of(failure: Tensor, wrong: Tensor, probability: bool) -> Measures:
    """The measures of failure scores (B,) in [0, 1] for answers that were wrong, (B,) bool.

    Args:
        failure: larger for answers that are trusted less.
        wrong: the truth about them.
        probability: whether the scores are probabilities.
    """
    told = measure_failure_prediction(failure, wrong)
    best = area_under_risk_coverage(wrong.double(), wrong)
    nothing = float("nan")
    return Measures(
        auroc=nothing if told.auroc is None else told.auroc,
        aurc=told.aurc,
        excess=told.aurc - best,
        fpr95=nothing if told.fpr_at_95_tpr is None else told.fpr_at_95_tpr,
        ece=told.ece if probability else nothing,
        chance_ece=_chance_ece(failure) if probability else nothing,
    )


def mean_of(measures: Sequence[Measures]) -> Measures:
    """The mean of each measure over those that know it."""
    known = {name: [v for each in measures if (v := getattr(each, name)) == v] for name in Measures.__slots__}
    return Measures(**{name: fmean(values) if values else float("nan") for name, values in known.items()})


def _judgements(pool: PoolEvidence, draws: int, folder: Path, code: str) -> Iterator[tuple[int, str, Measures]]:
    """Who was judged, by whom, how well."""
    count, truth = len(pool.members), pool.truth(TEST)
    ensembles = groups(count, _ENSEMBLE, draws, pool.seed)
    for members in track(ensembles, len(ensembles), f"ensembles of {pool.data}-{pool.seed}"):
        asked = pool.of(TEST, members)
        failure = failure_of(class_probability(pool, members, folder, code), asked)
        plain = failure_of(class_probability(pool, members, folder, code, rehearse=False), asked)
        for column, number in enumerate(members):
            wrong, answered = asked.labels[:, column] != truth, asked.answered[:, column]
            alike = as_failure(agreement(asked.labels, column), answered)
            yield number, TOGETHER, measures_of(failure[:, column], wrong, probability=True)
            yield number, UNREHEARSED, measures_of(plain[:, column], wrong, probability=True)
            yield number, AGREEMENT, measures_of(alike, wrong, probability=False)
    for number in track(range(count), count, f"versions of {pool.data}-{pool.seed} alone"):
        for name, failure, probability in _alone(pool, number, folder, code):
            wrong = pool.of(TEST, [number]).labels[:, 0] != truth
            yield number, name, measures_of(failure, wrong, probability)


def _alone(pool: PoolEvidence, number: int, folder: Path, code: str) -> Iterator[tuple[str, Tensor, bool]]:
    """Failure scores of one version's answers by what it alone shows, and whether they are probabilities."""
    asked, known, truth = pool.of(TEST, [number]), pool.of(CALIBRATION, [number]), pool.truth(CALIBRATION)
    yield ALONE, failure_of(class_probability(pool, (number,), folder, code), asked)[:, 0], True
    yield SCORES_ALONE, ScoresPredictor().fit(known, truth).failure_probability(asked)[:, 0], True
    for name, (model, calibration) in SCORE_VARIANTS.items():
        other = ScoresPredictor(model=model, calibration=calibration).fit(known, truth)
        yield name, other.failure_probability(asked)[:, 0], True
    for name, trust in single_scores(asked, known, truth).items():
        yield name, as_failure(trust, asked.answered[:, 0]), False


def _chance_ece(failure: Tensor) -> float:
    random = generator(0, "failure benchmark", "chance")
    drawn = [torch.rand(len(failure), generator=random, dtype=torch.float64) < failure for _ in range(_SIMULATED)]
    return fmean(expected_calibration_error(failure, wrong) for wrong in drawn)
