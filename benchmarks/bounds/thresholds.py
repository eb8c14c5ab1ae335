"""Ways to choose up to which failure probability to answer, from calibration inputs."""

import importlib
import importlib.util
import warnings
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepfailguard.decision.risk import ANSWER_NOTHING, bound_risk

__all__ = ["MAPIE", "NAIVE", "OURS", "Threshold", "naive_threshold", "thresholds"]

Threshold = Callable[[Tensor, Tensor, float, float], float]
"""From failure probabilities (n,), wrong (n,) bool, risk and confidence to a threshold; `ANSWER_NOTHING` for none."""

OURS: Final = "bound_risk"
NAIVE: Final = "naive threshold"
MAPIE: Final = "MAPIE"


def thresholds() -> Mapping[str, Threshold]:
    """All ways by name; MAPIE's where it is installed."""
    found = {OURS: _ours, NAIVE: naive_threshold}
    return found | ({MAPIE: _mapie} if importlib.util.find_spec("mapie") else {})


def naive_threshold(failure: Tensor, wrong: Tensor, risk: float, confidence: float) -> float:
    """The largest with which at most this share of the given answers was wrong on the calibration inputs.

    It promises nothing, so that the confidence changes nothing.

    >>> naive_threshold(torch.tensor([0.1, 0.2, 0.3]), torch.tensor([False, False, True]), 0.4, 0.95)
    0.30000001192092896
    """
    values, place = torch.unique(failure, return_inverse=True)
    answered = torch.bincount(place).cumsum(0)
    errors = torch.bincount(place, weights=wrong.double(), minlength=len(values)).cumsum(0)
    bearable = (errors / answered <= risk).nonzero()
    return float(values[bearable[-1]]) if len(bearable) else ANSWER_NOTHING


def _ours(failure: Tensor, wrong: Tensor, risk: float, confidence: float) -> float:
    return bound_risk(failure, wrong, risk=risk, confidence=confidence).threshold


def _mapie(failure: Tensor, wrong: Tensor, risk: float, confidence: float) -> float:
    """As the precision of "the answer is right", with the settings that MAPIE comes with."""

    def both(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.stack([values, 1 - values], 1)

    controller = importlib.import_module("mapie.risk_control").BinaryClassificationController(
        both, "precision", 1 - risk, confidence_level=confidence, best_predict_param_choice="recall"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where no threshold can be promised, which is counted here
        controller.calibrate(failure.numpy(), (~wrong).long().numpy())
    best = controller.best_predict_param
    return ANSWER_NOTHING if best is None else 1 - float(best)
