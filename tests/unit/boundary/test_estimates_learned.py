import copy
import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from deepfailguard.boundary.deepfool import FoolboxDeepFool
from deepfailguard.boundary.estimates.calibrated import CalibratedDistance
from deepfailguard.boundary.estimates.distilling import Teaching, distil
from deepfailguard.boundary.estimates.first_order import FirstOrderDistance
from deepfailguard.boundary.estimates.last_layer import LastLayerDistance
from deepfailguard.boundary.estimates.learned import LearnedDistance
from deepfailguard.boundary.estimates.monotone import Curve, fit_curve
from deepfailguard.boundary.estimates.quality import compare
from deepfailguard.boundary.estimates.regressor import Parameters, read_inputs
from deepfailguard.boundary.search.estimator import BoundarySearch
from deepfailguard.boundary.searching import for_version
from deepfailguard.errors import ConfigurationError, CorruptFileError, DataFormatError, NotFittedError
from deepfailguard.identity import describe, digest, rebuild, weights_fingerprint
from deepfailguard.seeding import generator
from deepfailguard.types import NO_ANSWER, Bounds, Distances
from tests.examples import affine, bars, template_model
from tests.trained import trained_on_bars

TEACHER = BoundarySearch("balanced")
SMALL = Teaching(width=32, epochs=60)
UNFITTED = [LearnedDistance(TEACHER, SMALL), CalibratedDistance(FirstOrderDistance(), TEACHER)]
CALIBRATION, HELD_OUT = bars(300, seed=21).images, bars(150, seed=22).images


@pytest.fixture(params=UNFITTED, ids=["learned", "calibrated"])
def unfitted(request: pytest.FixtureRequest) -> LearnedDistance | CalibratedDistance:
    chosen: LearnedDistance | CalibratedDistance = request.param
    return chosen


@pytest.fixture(scope="module")
def learned() -> LearnedDistance:
    torch.set_num_threads(1)
    return LearnedDistance(TEACHER, SMALL).fit(trained_on_bars(), CALIBRATION)


def test_it_tells_more_of_the_search_than_the_softmax_output_and_the_last_layer(learned: LearnedDistance) -> None:
    model = trained_on_bars()
    searched = TEACHER(model, HELD_OUT)
    told = compare(learned(model, HELD_OUT), searched)
    confidence = model(HELD_OUT).detach().softmax(1).amax(1)
    assert told.spearman > 0.9
    assert told.spearman > compare(Distances(searched.labels, confidence, searched.found), searched).spearman
    assert told.spearman > compare(LastLayerDistance()(model, HELD_OUT), searched).spearman
    assert told.error < 0.15


def test_its_quality_was_measured_on_images_that_it_did_not_learn_from(learned: LearnedDistance) -> None:
    quality = learned.quality(weights_fingerprint(trained_on_bars()))
    assert quality.images == 38  # every eighth of 300
    assert quality.spearman > 0.85
    assert str(quality).startswith(f"Spearman {quality.spearman:.3f}, median error ")


def test_an_affine_model_without_layers_is_learned_from_its_logits() -> None:
    model = template_model(noise=0.2)
    learned = LearnedDistance(TEACHER, SMALL).fit(model, CALIBRATION)
    assert compare(learned(model, HELD_OUT), TEACHER(model, HELD_OUT)).spearman > 0.97


def test_fit_is_deterministic_and_leaves_random_states_alone(unfitted: LearnedDistance | CalibratedDistance) -> None:
    model, state, threads = trained_on_bars(), torch.get_rng_state(), torch.get_num_threads()
    first = unfitted.fit(model, CALIBRATION[:60])
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(99)
    with torch.inference_mode():
        second = unfitted.fit(model, CALIBRATION[:60])
    assert describe(first) == describe(second)
    assert torch.get_num_threads() == threads
    assert unfitted.versions == {}


def test_another_seed_learns_something_else() -> None:
    few = CALIBRATION[:60]
    one, other = (LearnedDistance(TEACHER, replace(SMALL, epochs=2, seed=seed)) for seed in (0, 1))
    model = trained_on_bars()
    assert not torch.equal(one.fit(model, few)(model, few).size, other.fit(model, few)(model, few).size)


def test_the_description_is_json_and_rebuilds_the_same_distances(
    unfitted: LearnedDistance | CalibratedDistance,
) -> None:
    model = trained_on_bars()
    fitted = unfitted.fit(model, CALIBRATION[:80])
    again = rebuild(json.loads(json.dumps(describe(fitted))), ("deepfailguard",))
    assert again == fitted
    assert digest(describe(again)) == digest(describe(fitted))
    for field in ("labels", "size", "found"):
        assert torch.equal(getattr(again(model, HELD_OUT), field), getattr(fitted(model, HELD_OUT), field))


def test_each_version_has_a_state_of_its_own(unfitted: LearnedDistance | CalibratedDistance) -> None:
    one, other = trained_on_bars(), template_model(noise=0.1)
    names = weights_fingerprint(one), weights_fingerprint(other)
    both = unfitted.fit(one, CALIBRATION[:80]).fit(other, CALIBRATION[:80])
    assert tuple(both.versions) == names
    alone = unfitted.fit(other, CALIBRATION[:80])
    assert describe(both.of_version(names[1])) == describe(alone)
    assert describe(for_version(both, names[1])) == describe(alone)
    assert torch.equal(both(other, HELD_OUT).size, alone(other, HELD_OUT).size)
    with pytest.raises(NotFittedError, match=rf"the version {names[0][:16]} \(fitted: {names[1][:16]}\)"):
        alone(one, HELD_OUT)


def test_asked_before_it_was_fitted_it_says_what_to_call(unfitted: LearnedDistance | CalibratedDistance) -> None:
    with pytest.raises(
        NotFittedError, match=r"\(fitted: none\); use what its fit\(model, calibration_images\) returns"
    ):
        unfitted(trained_on_bars(), HELD_OUT)
    with pytest.raises(NotFittedError):
        unfitted.of_version("0" * 64)


def test_changed_weights_are_another_version(learned: LearnedDistance) -> None:
    model = copy.deepcopy(trained_on_bars())
    learned(model, HELD_OUT[:2])
    with torch.no_grad():
        model[0].bias[0] += 1e-3
    with pytest.raises(NotFittedError):
        learned(model, HELD_OUT[:2])


def test_other_bounds_forget_what_was_learned(unfitted: LearnedDistance | CalibratedDistance) -> None:
    fitted = unfitted.fit(trained_on_bars(), CALIBRATION[:60])
    assert fitted.with_bounds(Bounds(0.0, 1.0)) == fitted
    wider = fitted.with_bounds(Bounds(-1.0, 1.0))
    assert wider.versions == {}
    assert (wider.bounds, wider.teacher.bounds) == (Bounds(-1.0, 1.0), Bounds(-1.0, 1.0))  # type: ignore[attr-defined]


def test_too_few_images_are_refused(unfitted: LearnedDistance | CalibratedDistance) -> None:
    with pytest.raises(DataFormatError, match=r"6 calibration images are too few .* expected at least \d+"):
        unfitted.fit(trained_on_bars(), CALIBRATION[:6])


def test_a_version_that_never_flips_has_no_distances_and_stops_nobody(
    unfitted: LearnedDistance | CalibratedDistance, caplog: pytest.LogCaptureFixture
) -> None:
    stubborn = affine()
    with torch.no_grad():
        stubborn.bias[0] += 1e6
    fitted = replace(unfitted, teacher=FoolboxDeepFool(steps=1)).fit(stubborn, CALIBRATION[:40])
    assert "found distances of 0 of 40 calibration images" in caplog.text
    got = rebuild(describe(fitted), ("deepfailguard",))(stubborn, HELD_OUT)
    assert not got.found.any()
    assert (got.labels == 0).all()


def test_logits_that_are_not_finite_are_no_answers(unfitted: LearnedDistance | CalibratedDistance) -> None:
    class Fragile(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sound = template_model(noise=0.2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.sound(x)
            return torch.where(x[:, 0, 0, :1] > 0.999, torch.nan, logits)

    x = HELD_OUT[:8].clone()
    x[3, 0, 0, 0] = 1.0
    model = Fragile()
    got = unfitted.fit(model, CALIBRATION[:80].clamp_max(0.99))(model, x)
    assert got.labels[3] == NO_ANSWER
    assert got.found.tolist() == [True] * 3 + [False] + [True] * 4
    assert got.size.isfinite().all()


def test_a_damaged_state_is_noticed() -> None:
    with pytest.raises(CorruptFileError, match=r"no learned distance.*fit it again"):
        Parameters.from_text({"centre": "3:AAAA"})


def test_settings_that_cannot_work_are_refused(learned: LearnedDistance) -> None:
    for settings in ({"width": 0}, {"networks": 0}, {"epochs": 0}, {"most_steps": 0}, {"dropout": 1.0}):
        with pytest.raises(ConfigurationError, match="must be"):
            Teaching(**settings)  # type: ignore[arg-type]
    for settings in ({"width": 1.5}, {"epochs": "2"}, {"most_steps": True}, {"dropout": "0.1"}):
        with pytest.raises(ConfigurationError, match=r"teaching\.\w+ must be .* got "):
            Teaching(**settings)  # type: ignore[arg-type]
    for wrong in (-1, 2.5):
        with pytest.raises(ConfigurationError, match="convolutions must be a whole number of at least 0"):
            LearnedDistance(TEACHER, convolutions=wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"batch_size must be a whole number .* got 2\.5"):
        LearnedDistance(TEACHER, batch_size=2.5)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="knots must be a whole number of at least 1"):
        CalibratedDistance(LastLayerDistance(), TEACHER, knots=0)
    with pytest.raises(ConfigurationError, match="got a LearnedDistance, which learns a search's scale itself"):
        CalibratedDistance(learned, TEACHER)


@pytest.mark.parametrize("steps", range(1, 9))
def test_any_number_of_steps_can_be_taught(steps: int) -> None:
    draw = generator(0, "steps")
    inputs = read_inputs(torch.randn(30, 3, generator=draw), torch.zeros(30, 0))
    parameters = distil(inputs, torch.zeros(30), Teaching(width=4, most_steps=steps))
    assert all(tensor.isfinite().all() for tensor in parameters.tensors().values())


@pytest.mark.parametrize(("images", "said"), [(40, True), (120, False)])
def test_a_quality_of_few_images_is_said_to_tell_nothing(
    images: int, said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    LearnedDistance(TEACHER, Teaching(width=4, epochs=1)).fit(trained_on_bars(), CALIBRATION[:images])
    assert ("held-out images only, so it tells next to nothing" in caplog.text) is said


def test_calibration_puts_the_last_layer_on_the_search_s_scale() -> None:
    model = trained_on_bars()
    raw = LastLayerDistance()
    calibrated = CalibratedDistance(raw, TEACHER).fit(model, CALIBRATION)
    state = calibrated.calibration(weights_fingerprint(model))
    assert state.after.error < state.before.error / 2
    searched = TEACHER(model, HELD_OUT)
    before, after = compare(raw(model, HELD_OUT), searched), compare(calibrated(model, HELD_OUT), searched)
    assert after.error < before.error / 2
    assert after.spearman == pytest.approx(before.spearman, abs=1e-3)


def test_a_curve_through_exact_pairs_is_that_line() -> None:
    x = torch.rand(200, generator=torch.Generator().manual_seed(1)) + 0.01
    curve = fit_curve(x, 3 * x, knots=8)
    torch.testing.assert_close(curve(x), 3 * x)
    torch.testing.assert_close(curve(torch.tensor([0.0, 1e-6, 1e6])), torch.tensor([0.0, 3e-6, 3e6]))


def test_equal_estimates_make_one_knot() -> None:
    curve = fit_curve(torch.ones(20), torch.full((20,), 5.0), knots=8)
    assert len(curve.x) == 1
    torch.testing.assert_close(curve(torch.tensor([1.0, 2.0])), torch.tensor([5.0, 10.0]))
    assert rebuild(json.loads(json.dumps(describe(curve))), ("deepfailguard",)) == curve


def test_a_model_of_many_classes_is_learned_without_a_number_for_each_pair() -> None:
    model = affine(classes=250)
    learned = LearnedDistance(LastLayerDistance(), replace(SMALL, epochs=5))
    with pytest.raises(ConfigurationError, match="found none in this Affine"):
        learned.fit(model, CALIBRATION[:40])
    fitted = replace(learned, teacher=FirstOrderDistance()).fit(model, CALIBRATION[:120])
    (state,) = fitted.versions.values()
    assert Parameters.from_text(state.parameters).pairs.shape == (1, 1)
    assert fitted(model, HELD_OUT).found.all()


def test_what_was_learned_is_told_in_a_line(learned: LearnedDistance) -> None:
    assert repr(learned).endswith("low=0.0, high=1.0)")
    (state,) = learned.versions.values()
    assert str(state).endswith("on 38 images that were held out")


def test_constant_distances_have_no_rank_correlation() -> None:
    one = Distances(torch.zeros(4).long(), torch.ones(4), torch.ones(4).bool())
    other = replace(one, size=torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert compare(one, other).spearman == 0.0
    with pytest.raises(DataFormatError, match=r"0 of 4 images have an estimated and a searched distance"):
        compare(one, replace(other, found=torch.zeros(4).bool()))
    assert Curve((0.0,), (0.0,))(torch.tensor([2.0])) == 2.0
