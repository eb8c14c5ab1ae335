"""Every predictor, on evidence as it should be and as it should not."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from deepfailguard.errors import ConfigurationError, DataFormatError, NotFittedError
from deepfailguard.identity import describe, rebuild
from deepfailguard.predictor.ablations import DistanceOnlyPredictor
from deepfailguard.predictor.base import ClassPredictor, FailurePredictor
from deepfailguard.predictor.dynamic_selection import DynamicSelectionPredictor
from deepfailguard.predictor.joint.predictor import JointPredictor
from deepfailguard.predictor.kde import KdePredictor
from deepfailguard.predictor.prior import PriorPredictor
from deepfailguard.predictor.scores import ScoresPredictor
from deepfailguard.predictor.soft_vote import SoftVotePredictor
from deepfailguard.predictor.stacking import StackingPredictor
from deepfailguard.predictor.staged import StagedPredictor
from deepfailguard.seeding import generator
from deepfailguard.store import load_tensors, save_tensors
from deepfailguard.types import Evidence, Rehearsed

PREDICTORS: dict[str, Any] = {
    "kde": KdePredictor,
    "kde_equal": lambda: KdePredictor(prior="equal"),
    "prior": PriorPredictor,
    **{form: (lambda form=form: DistanceOnlyPredictor(form)) for form in ("v1", "v2", "v3", "v4")},
    "joint": JointPredictor,
    "joint_rehearsed": lambda: _rehearsing(JointPredictor()),
    "staged": lambda: StagedPredictor(tolerance=0.05),
    "soft_vote": SoftVotePredictor,
    "soft_vote_log": lambda: SoftVotePredictor("accuracy", "log"),
    "stacking": StackingPredictor,
    **{m: (lambda m=m: DynamicSelectionPredictor(m)) for m in ("ola", "knora_u", "knora_e", "des_p")},
    "scores": ScoresPredictor,
    "scores_distance": lambda: ScoresPredictor(("confidence", "distance"), calibration="isotonic"),
    "scores_venn_abers": lambda: ScoresPredictor(calibration="venn_abers"),
    "scores_boosting": lambda: ScoresPredictor(("confidence", "distance"), "boosting", "isotonic"),
    "scores_logits": lambda: ScoresPredictor(("confidence", "gap", "energy")),
    "scores_features": lambda: ScoresPredictor(("typicality", "second_opinion")),
}
CLASSES, FEATURES = 4, 6


@pytest.fixture(params=PREDICTORS)
def predictor(request: pytest.FixtureRequest) -> FailurePredictor:
    made: FailurePredictor = PREDICTORS[request.param]()
    return made


def _rehearsing(predictor: Any) -> Any:
    """The predictor, which is given changed calibration inputs whenever it is fitted."""
    fit = predictor.fit
    predictor.fit = lambda evidence, truth: fit(evidence, truth, _rehearsed(evidence, truth))
    return predictor


def _rehearsed(evidence: Evidence, truth: Tensor) -> Rehearsed:
    """The first calibration inputs, of which all versions see less."""
    some, random = evidence[:40], generator(0, "rehearsed")
    if some.logits is not None and some.features is not None:
        logits = 0.3 * some.logits + torch.rand(some.logits.shape, generator=random)
        features = tuple(0.3 * each + torch.randn(each.shape, generator=random) for each in some.features)
        some = replace(some, logits=logits, features=features)
    return Rehearsed(some, truth[:40], torch.arange(len(some)))


def _evidence(inputs: int, versions: int, purpose: str = "evidence") -> Evidence:
    """Evidence with answers and distances that are missing here and there."""
    random = generator(0, purpose)
    labels = torch.randint(-1, CLASSES, (inputs, versions), generator=random)
    distance = torch.rand(inputs, versions, generator=random)
    return _showing(Evidence(labels, distance, torch.rand(inputs, versions, generator=random) < 0.9))


def _showing(evidence: Evidence) -> Evidence:
    """The evidence with logits and features that go with its labels and distances; zero where nobody answered."""
    random, told = generator(0, "logits"), evidence.labels.clamp_min(0)[:, :, None]
    noise = torch.rand(*evidence.labels.shape, CLASSES, generator=random)
    sure = 1 + 3 * evidence.distance.nan_to_num(0.5)[:, :, None]
    logits = torch.where(evidence.answered[:, :, None], noise.scatter_add(2, told, sure), 0.0)
    features = torch.randn(*evidence.labels.shape, FEATURES, generator=random).scatter_add(2, told, sure)
    features = torch.where(evidence.answered[:, :, None], features, 0.0)
    return Evidence(evidence.labels, evidence.distance, evidence.found, logits, features.unbind(1))


def _calibration(inputs: int, versions: int, purpose: str = "evidence") -> tuple[Evidence, Tensor]:
    """What `_evidence` gives, with labels that are mostly right where the distance is large, and the truth."""
    evidence, random = _evidence(inputs, versions, purpose), generator(0, "noise")
    correct = evidence.distance + 0.2 * torch.rand(inputs, versions, generator=random) > 0.4
    truth = torch.randint(0, CLASSES, (inputs,), generator=random)
    return _answering(evidence, truth, correct), truth


def _answering(evidence: Evidence, truth: Tensor, correct: Tensor) -> Evidence:
    """The evidence with answers that agree with the truth exactly where `correct` (B, N) says so."""
    other = (truth[:, None] + torch.randint(1, CLASSES, correct.shape, generator=generator(0, "other"))) % CLASSES
    labels = torch.where(correct, truth[:, None], other)
    return _showing(Evidence(torch.where(evidence.answered, labels, -1), evidence.distance, evidence.found))


def _check_range(predictor: FailurePredictor, evidence: Evidence) -> Tensor:
    failure = predictor.failure_probability(evidence)
    assert failure.shape == evidence.labels.shape
    assert failure.dtype == torch.float64
    assert ((failure >= 0) & (failure <= 1)).all()
    assert (failure[~evidence.answered] == 1).all()
    return failure


@pytest.mark.parametrize("versions", [1, 3, 20])
def test_any_number_of_versions(predictor: FailurePredictor, versions: int) -> None:
    evidence, truth = _calibration(120, versions)
    assert predictor.fit(evidence, truth) is predictor
    assert len(_check_range(predictor, _evidence(50, versions, "test")).unique()) > 1


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("inputs", [1, 2, 30])
def test_empty_classes(predictor: FailurePredictor, right: bool, inputs: int) -> None:
    evidence, truth = _calibration(inputs, 2)
    predictor.fit(_answering(evidence, truth, torch.full((inputs, 2), right)), truth)
    _check_range(predictor, _evidence(40, 2, "test"))


def test_versions_that_never_answer_or_never_have_a_distance(predictor: FailurePredictor) -> None:
    evidence, truth = _calibration(60, 3)
    evidence.labels[:, 0] = -1
    evidence.found[:, 1] = False
    predictor.fit(_showing(evidence), truth)
    _check_range(predictor, _evidence(40, 3, "test"))


def test_distances_that_are_not_finite_spoil_nothing_else(predictor: FailurePredictor) -> None:
    evidence, truth = _calibration(60, 2)
    predictor.fit(evidence, truth)
    spoilt = replace(evidence, distance=evidence.distance.clone())
    spoilt.distance[5, 0], spoilt.distance[9, 1] = torch.nan, torch.inf
    untouched = torch.ones(60, 2, dtype=torch.bool)
    untouched[5, 0] = untouched[9, 1] = False
    failure = _check_range(predictor, spoilt)
    assert torch.equal(failure[untouched], predictor.failure_probability(evidence)[untouched])


def test_calibration_distances_that_are_not_finite(predictor: FailurePredictor) -> None:
    evidence, truth = _calibration(60, 2)
    evidence.distance[:7] = torch.nan
    predictor.fit(evidence, truth)
    _check_range(predictor, _evidence(40, 2, "test"))


def test_an_input_is_judged_alike_alone_in_a_batch_and_on_two_threads(predictor: FailurePredictor) -> None:
    torch.set_num_threads(2)
    (evidence, truth), test = _calibration(300, 3), _evidence(101, 3, "test")
    predictor.fit(evidence, truth)
    whole = predictor.failure_probability(test)
    for size in (1, 7):
        pieces = [predictor.failure_probability(test[i : i + size]) for i in range(0, 101, size)]
        # A matrix product may round differently in a batch of another size; whatever else must not.
        torch.testing.assert_close(torch.cat(pieces), whole, rtol=0, atol=1e-9 if "logits" in predictor.needs else 0)
    assert predictor.failure_probability(test[:0]).shape == (0, 3)


def test_versions_are_judged_alone_where_it_says_so(predictor: FailurePredictor) -> None:
    (evidence, truth), test, columns = _calibration(150, 4), _evidence(40, 4, "test"), [3, 1]
    whole = predictor.fit(evidence, truth).failure_probability(test)
    predictor.fit(evidence.of_versions(columns), truth)
    some = predictor.failure_probability(test.of_versions(columns))
    assert predictor.judges_alone == torch.equal(some, whole[:, columns])


def test_distances_are_ignored_where_none_are_needed(predictor: FailurePredictor) -> None:
    (evidence, truth), test = _calibration(150, 2), _evidence(40, 2, "test")
    predictor.fit(evidence, truth)
    unfound = replace(test, found=torch.zeros_like(test.found))
    same = torch.equal(predictor.failure_probability(test), predictor.failure_probability(unfound))
    assert same == ("distances" not in predictor.needs)


def test_state_and_description_make_the_same_predictor_from_disk(predictor: FailurePredictor, tmp_path: Any) -> None:
    (evidence, truth), test = _calibration(80, 3), _evidence(40, 3, "test")
    expected = predictor.fit(evidence, truth).failure_probability(test)
    save_tensors(tmp_path / "state.safetensors", predictor.state())
    description = json.loads(json.dumps(describe(predictor)))
    again = rebuild(description, ("deepfailguard",))
    assert again.with_state(load_tensors(tmp_path / "state.safetensors").tensors) is again
    assert torch.equal(again.failure_probability(test), expected)


def test_fit_learns_anew(predictor: FailurePredictor) -> None:
    earlier, calibration, test = _calibration(80, 3), _calibration(90, 2, "other"), _evidence(40, 2, "test")
    predictor.fit(*calibration)
    expected = predictor.failure_probability(test)
    predictor.fit(*earlier).fit(*calibration)
    assert torch.equal(predictor.failure_probability(test), expected)


def test_unfitted(predictor: FailurePredictor) -> None:
    with pytest.raises(NotFittedError, match="not fitted yet; call fit"):
        predictor.failure_probability(_evidence(3, 2))
    with pytest.raises(NotFittedError, match="not fitted yet; call fit"):
        predictor.state()


def test_another_number_of_versions(predictor: FailurePredictor) -> None:
    predictor.fit(*_calibration(30, 3))
    with pytest.raises(ConfigurationError, match="fitted on 3 versions, got evidence of 2"):
        predictor.failure_probability(_evidence(5, 2))


def test_wrong_input(predictor: FailurePredictor) -> None:
    evidence, truth = _calibration(30, 3)
    with pytest.raises(DataFormatError, match="at least one input"):
        predictor.fit(evidence[:0], truth[:0])
    for bad in (evidence.labels, evidence.labels == truth[:, None], truth[:29], truth.double()):
        with pytest.raises(DataFormatError, match=r"truth must be int64 \(30,\)"):
            predictor.fit(evidence, bad)
    with pytest.raises(DataFormatError, match=r"classes must be >= 0 .* got -1"):
        predictor.fit(evidence, torch.where(torch.arange(30) == 7, -1, truth))
    with pytest.raises(DataFormatError, match="one shape"):
        predictor.fit(Evidence(evidence.labels, evidence.distance[:5], evidence.found), truth)
    with pytest.raises(ConfigurationError, match="expects the state"):
        predictor.with_state({"surprise": torch.zeros(1)})


def test_class_probabilities_agree_with_failure_probabilities(predictor: FailurePredictor) -> None:
    if not isinstance(predictor, ClassPredictor):
        assert "logits" not in predictor.needs or predictor.judges_alone
        return
    (evidence, truth), test = _calibration(80, 3), _evidence(40, 3, "test")
    predictor.fit(evidence, truth)
    probability = predictor.class_probability(test)
    assert probability.shape == (40, CLASSES)
    assert probability.dtype == torch.float64
    assert (probability > 0).all()
    torch.testing.assert_close(probability.sum(1), torch.ones(40, dtype=torch.float64))
    expected = 1 - probability.gather(1, test.labels.clamp_min(0))
    failure = predictor.failure_probability(test)
    torch.testing.assert_close(failure[test.answered], expected[test.answered])
    assert predictor.class_probability(test[:0]).shape == (0, CLASSES)


def test_what_it_needs_and_does_not_get(predictor: FailurePredictor) -> None:
    evidence, truth = _calibration(30, 2)
    for need in predictor.needs - {"distances"}:
        with pytest.raises(DataFormatError, match=f"needs? evidence with .*{need}"):
            predictor.fit(replace(evidence, **{need: None}), truth)


def test_classes_that_have_no_logit(predictor: FailurePredictor) -> None:
    evidence, truth = _calibration(30, 2)
    if "logits" in predictor.needs:
        with pytest.raises(DataFormatError, match="go up to 4, but there are logits of 4 classes"):
            predictor.fit(evidence, truth + (truth == 3))


def test_another_number_of_classes(predictor: FailurePredictor) -> None:
    evidence, truth = _calibration(30, 2)
    predictor.fit(evidence, truth)
    if "logits" in predictor.needs:
        assert evidence.logits is not None
        with pytest.raises(ConfigurationError, match="fitted on 4 classes, got logits of 3"):
            predictor.failure_probability(replace(evidence, logits=evidence.logits[:, :, :3]))
