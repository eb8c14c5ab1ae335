"""The joint predictor's class probabilities of the test inputs, worked out once and kept."""

from pathlib import Path

from torch import Tensor

from benchmarks.decisions.evidence import PoolEvidence
from benchmarks.decisions.images import CALIBRATION, TEST
from benchmarks.decisions.keeping import ensemble_of, kept_or_made
from deepfailguard.predictor.joint.predictor import JointPredictor
from deepfailguard.store import TensorFile

__all__ = ["class_probability"]


def class_probability(
    pool: PoolEvidence, members: tuple[int, ...], folder: Path, code: str, *, rehearse: bool = True
) -> Tensor:
    """P(truth is class k), (B, K) float64, of the test inputs.

    By the default predictor, which learned from these versions' answers to the calibration inputs, usual and
    rehearsed; for one version as for several.

    Args:
        pool: what its versions say.
        members: who answers together.
        folder: of what is kept.
        code: digest of the predictor's code.
        rehearse: whether it also learned from changed inputs, as it does by default.
    """

    def made() -> TensorFile:
        rehearsed = pool.rehearsed(members, frozenset()) if rehearse else None
        predictor = JointPredictor().fit(pool.of(CALIBRATION, members), pool.truth(CALIBRATION), rehearsed)
        return TensorFile({"probability": predictor.class_probability(pool.of(TEST, members))}, {})

    origin = {**ensemble_of(pool, members), "rehearse": rehearse, "code": code}
    return kept_or_made(folder, origin, made).tensors["probability"]
