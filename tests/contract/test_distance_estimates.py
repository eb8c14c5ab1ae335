"""The contract of distance estimators, run over the estimates."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from deepfailguard.boundary.base import DistanceEstimator
from deepfailguard.boundary.deepfool import FoolboxDeepFool
from deepfailguard.boundary.estimates.calibrated import CalibratedDistance
from deepfailguard.boundary.estimates.distilling import Teaching
from deepfailguard.boundary.estimates.first_order import FirstOrderDistance
from deepfailguard.boundary.estimates.last_layer import LastLayerDistance
from deepfailguard.boundary.estimates.learned import LearnedDistance
from tests.contract.test_distance_estimators import (  # noqa: F401 - the same tests, with the estimators of this file
    images,
    model,
    test_an_empty_batch_gives_empty_records,
    test_inputs_that_are_not_finite_or_out_of_bounds_are_refused,
    test_it_works_in_inference_mode_and_with_inputs_that_want_gradients,
    test_labels_are_the_models_answers_in_evaluation_mode,
    test_records_have_the_promised_shapes_dtypes_and_ranges,
    test_results_repeat_bit_for_bit,
    test_settings_are_described_for_the_caches_key,
    test_the_model_is_left_as_it_was,
)

Make = Callable[[nn.Module], DistanceEstimator]
TEACHER = FoolboxDeepFool(steps=10, batch_size=4)


@pytest.fixture(params=["first_order", "first_order_soft", "last_layer", "learned", "calibrated"])
def make(request: pytest.FixtureRequest) -> Make:
    """Build the estimator for a model, fitted where it learns."""

    def build(asked: nn.Module) -> DistanceEstimator:
        match request.param:
            case "first_order":
                return FirstOrderDistance(batch_size=4)
            case "first_order_soft":
                return FirstOrderDistance("soft", batch_size=4)
            case "last_layer":
                return LastLayerDistance(batch_size=4)
            case "learned":
                unfitted = LearnedDistance(TEACHER, Teaching(width=8, epochs=2), convolutions=2, batch_size=4)
                return unfitted.fit(asked, images(40))
        return CalibratedDistance(LastLayerDistance(batch_size=4), TEACHER).fit(asked, images(40))

    return build


def test_no_hook_is_left_and_every_mode_is_kept(make: Make, model: nn.Module) -> None:  # noqa: F811
    estimate = make(model.train())
    estimate(model, images())
    assert all(module.training for module in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())


def test_every_finite_answer_has_an_estimate(make: Make, model: nn.Module) -> None:  # noqa: F811
    assert make(model)(model, images()).found.all()
    assert torch.equal(make(model)(model, images(3)).labels, model.eval()(images(3)).argmax(1))
