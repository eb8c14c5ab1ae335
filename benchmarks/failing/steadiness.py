"""Stability as a judge: alone, and beside the other scores of one version. Asked once and kept in files of its own."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from torch import Tensor

from benchmarks.decisions.evidence import PoolEvidence
from benchmarks.decisions.images import CALIBRATION, TEST
from benchmarks.decisions.keeping import kept_or_made
from benchmarks.failing.measuring import Judged, Measures, measures_of
from benchmarks.failing.single_scores import as_failure
from benchmarks.reporting import digest_of_code
from deepfailguard.predictor.scores import ScoresPredictor
from deepfailguard.progress import track
from deepfailguard.store import TensorFile
from deepfailguard.types import Evidence
from deepfailguard.versions.stability import stability
from deepfailguard.versions.version import Version

__all__ = ["SCORES_STEADY", "STABILITY", "Steadiness", "judge_stability"]

STABILITY: Final = "stability"
SCORES_STEADY: Final = "scores predictor with stability, alone"

_CODE: Final = ("deepfailguard/versions/stability.py",)


class Steadiness:
    """What the versions of a pool say of slightly changed calibration and test images.

    Args:
        pool: what they say of the unchanged ones.
        load: a version by its position in the pool; only called where something is missing.
        folder: of what is kept.
    """

    def __init__(self, pool: PoolEvidence, load: Callable[[int], Version], folder: Path) -> None:
        self.pool = pool
        self.load = load
        self.folder = folder
        self.code = digest_of_code(*_CODE)

    def of(self, part: str, number: int) -> Evidence:
        """Evidence of one version on a part, with its stability."""
        told, images = self.pool.of(part, [number]), self.pool.parts[part].images
        made_of = {"version": self.pool.fingerprints[number], "inputs": images.fingerprint, "code": self.code}
        made = partial(self._made, number, images.images, told.labels[:, 0])
        return replace(told, stability=kept_or_made(self.folder, made_of, made).tensors[STABILITY][:, None])

    def _made(self, number: int, images: Tensor, labels: Tensor) -> TensorFile:
        version = self.load(number)
        return TensorFile({STABILITY: stability(version.model, images, labels, version.bounds)}, {})


def judge_stability(judged: Sequence[Judged], steadiness: Steadiness) -> list[Judged]:
    """The versions of a pool, judged by their stability too.

    Args:
        judged: all versions of the pool, in its order.
        steadiness: of the pool.
    """
    numbers = track(range(len(judged)), len(judged), "versions on slightly changed images")
    return [
        replace(each, measures={**each.measures, **dict(_judgements(steadiness, number))})
        for number, each in zip(numbers, judged, strict=True)
    ]


def _judgements(steadiness: Steadiness, number: int) -> Iterator[tuple[str, Measures]]:
    pool = steadiness.pool
    asked, known = steadiness.of(TEST, number), steadiness.of(CALIBRATION, number)
    assert asked.stability is not None
    wrong = asked.labels[:, 0] != pool.truth(TEST)
    alone = as_failure(asked.stability[:, 0].double(), asked.answered[:, 0])
    yield STABILITY, measures_of(alone, wrong, probability=False)
    predictor = ScoresPredictor((*ScoresPredictor().evidence, "stability")).fit(known, pool.truth(CALIBRATION))
    yield SCORES_STEADY, measures_of(predictor.failure_probability(asked)[:, 0], wrong, probability=True)
