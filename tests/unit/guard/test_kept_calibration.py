"""A guard keeps what it was calibrated with, and can be fitted anew without asking a model."""

import functools
import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from deepfailguard.decision.base import Rule
from deepfailguard.decision.rules import majority_vote, single_version
from deepfailguard.errors import ConfigurationError, CorruptFileError
from deepfailguard.guard.calibration import hashes_of
from deepfailguard.guard.guarded import GuardedPredictor
from deepfailguard.predictor.base import FailurePredictor
from deepfailguard.predictor.joint.predictor import JointPredictor
from deepfailguard.predictor.kde import KdePredictor
from deepfailguard.predictor.prior import PriorPredictor
from deepfailguard.predictor.staged import StagedPredictor
from deepfailguard.store import load_json, save_json
from deepfailguard.types import Evidence
from tests.examples import bars, template_model

CALIBRATION, TEST = bars(150, seed=3), bars(60, seed=4)
NAMES = ("good", "fair", "poor")
PREDICTORS = [JointPredictor(rehearse=10), StagedPredictor(rehearse=10), KdePredictor()]


def _models() -> dict[str, nn.Module]:
    return {name: template_model(seed, 0.1 + 0.35 * seed) for seed, name in enumerate(NAMES)}


def _tensors(evidence: Evidence) -> list[Tensor]:
    optional = [] if evidence.logits is None else [evidence.logits]
    return [evidence.labels, evidence.distance, evidence.found, *optional, *(evidence.features or ())]


@pytest.fixture(scope="module", params=PREDICTORS, ids=lambda p: type(p).__name__)
def guard(request: pytest.FixtureRequest) -> GuardedPredictor:
    return GuardedPredictor.fit(_models(), CALIBRATION, predictor=request.param)


def test_a_guard_without_some_versions_is_one_that_never_had_them(guard: GuardedPredictor) -> None:
    models = _models()
    alone = GuardedPredictor.fit(
        {name: models[name] for name in ("good", "poor")}, CALIBRATION, predictor=guard.saved.predictor
    )
    left = guard.without(["fair"])
    one, other = left(TEST.images), alone(TEST.images)
    assert left.saved.card == alone.saved.card
    assert [health.name for health in one.health] == ["good", "poor"]
    assert torch.equal(one.labels, other.labels)
    torch.testing.assert_close(one.probabilities, other.probabilities)
    torch.testing.assert_close(one.version_failure_probability, other.version_failure_probability)
    assert guard(TEST.images).version_labels.shape == (60, 3)  # the first guard is as it was


def test_it_asks_no_model_and_shares_them(guard: GuardedPredictor) -> None:
    left = guard.without(["good", "fair"])
    assert left.models[0] is guard.models[2]
    again = left.without([])
    assert torch.equal(again(TEST.images).labels, left(TEST.images).labels)


def test_versions_that_are_not_there_and_all_of_them_cannot_be_left_out(guard: GuardedPredictor) -> None:
    with pytest.raises(ConfigurationError, match="no version 'bad'; the guard has good, fair, poor"):
        guard.without(["bad"])
    with pytest.raises(ConfigurationError, match="expected a list of versions"):
        guard.without("good")
    with pytest.raises(ConfigurationError, match="no version is left"):
        guard.without(NAMES)


def _with_decision(decision: Rule) -> GuardedPredictor:
    return GuardedPredictor.fit(_models(), CALIBRATION, predictor=PriorPredictor(), decision=decision)


def test_a_single_version_that_answers_is_found_in_its_new_place(tmp_path: Path) -> None:
    left = _with_decision(functools.partial(single_version, version=1)).without(["good"])
    verdict = left(TEST.images)
    assert torch.equal(verdict.labels, verdict.version_labels[:, 0])
    assert left.saved.card.names == ("fair", "poor")
    left.save(tmp_path)
    assert torch.equal(GuardedPredictor.load(tmp_path, left.models)(TEST.images).labels, verdict.labels)
    with pytest.raises(ConfigurationError, match="answers by version 1 alone, which would be left out"):
        _with_decision(functools.partial(single_version, version=1)).without(["fair"])


def test_a_promised_risk_ends_with_a_version(caplog: pytest.LogCaptureFixture) -> None:
    careful = _with_decision(functools.partial(majority_vote, abstain_above=0.5))
    with caplog.at_level(logging.WARNING):
        _with_decision(majority_vote).without(["good"])
        careful.without([])
        assert caplog.text == ""
        careful.without(["good", "poor"])
    assert caplog.text.count("without good, poor the threshold of the decision is another guard's") == 1


def test_what_was_learned_from_comes_back_from_disk(guard: GuardedPredictor, tmp_path: Path) -> None:
    guard.save(tmp_path)
    again = GuardedPredictor.load(tmp_path, _models())
    one, other = guard.saved.calibration, again.saved.calibration
    assert torch.equal(one.truth, CALIBRATION.labels)
    assert torch.equal(one.truth, other.truth)
    assert torch.equal(one.images, hashes_of(CALIBRATION.images))
    assert torch.equal(one.images, other.images)
    assert all(map(torch.equal, _tensors(one.evidence), _tensors(other.evidence)))
    assert (one.rehearsed is None) == (other.rehearsed is None) == isinstance(guard.saved.predictor, KdePredictor)
    if one.rehearsed is not None and other.rehearsed is not None:
        assert all(map(torch.equal, _tensors(one.rehearsed.evidence), _tensors(other.rehearsed.evidence)))
        assert torch.equal(one.rehearsed.source, other.rehearsed.source)
        assert torch.equal(one.rehearsed.truth, CALIBRATION.labels[one.rehearsed.source])
    left, again_left = guard.without(["good"]), again.without(["good"])
    assert torch.equal(left(TEST.images).failure_probability, again_left(TEST.images).failure_probability)


def test_the_given_predictor_stays_unfitted() -> None:
    predictor = KdePredictor()
    one = GuardedPredictor.fit(_models(), CALIBRATION, predictor=predictor)
    before = one(TEST.images).failure_probability
    GuardedPredictor.fit([template_model(9, 2.0)], CALIBRATION, predictor=predictor)
    assert predictor.accuracy_ is None
    assert torch.equal(one(TEST.images).failure_probability, before)


def test_damage_to_what_is_kept_is_noticed(tmp_path: Path) -> None:
    def saved(name: str, seed: int) -> Path:
        predictor: FailurePredictor = JointPredictor(rehearse=0)
        GuardedPredictor.fit(_models(), bars(100, seed), predictor=predictor).save(tmp_path / name)
        (tmp_path / name / "manifest.json").unlink()  # as in older releases: the card knows what belongs to it
        return tmp_path / name / "calibration.safetensors"

    path, other = saved("one", 3), saved("other", 4)
    whole = path.read_bytes()
    path.write_bytes(other.read_bytes())
    with pytest.raises(CorruptFileError, match=r"calibration\.safetensors belongs to another guard"):
        GuardedPredictor.load(tmp_path / "one", _models())
    path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 4]) + whole[-8:])
    with pytest.raises(CorruptFileError, match=r"calibration\.safetensors was changed"):
        GuardedPredictor.load(tmp_path / "one", _models())
    path.unlink()
    with pytest.raises(CorruptFileError, match=r"lost a part: no file .*calibration\.safetensors"):
        GuardedPredictor.load(tmp_path / "one", _models())


@pytest.mark.parametrize("missing", ["calibration", "service"])
def test_a_folder_of_an_older_release_says_so(missing: str, tmp_path: Path) -> None:
    GuardedPredictor.fit(_models(), CALIBRATION, predictor=JointPredictor(rehearse=0)).save(tmp_path)
    (tmp_path / "manifest.json").unlink()
    content = load_json(tmp_path / "guard.json")
    del content[missing]
    save_json(tmp_path / "guard.json", content)
    with pytest.raises(ConfigurationError, match="older release, which kept less of the calibration; fit the guard"):
        GuardedPredictor.load(tmp_path, _models())
