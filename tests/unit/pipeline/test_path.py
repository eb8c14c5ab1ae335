import csv
import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from deepfailguard.boundary.deepfool import FoolboxDeepFool
from deepfailguard.data.base import Splits
from deepfailguard.decision.rules import highest_posterior
from deepfailguard.errors import CacheMissError, ConfigurationError
from deepfailguard.evaluation.records import Evaluation
from deepfailguard.faults.test_data import NaturalShiftV4, NoisyInputs
from deepfailguard.faults.training_data import LabelNoise
from deepfailguard.guard.guarded import GuardedPredictor
from deepfailguard.guard.saved import load_guard
from deepfailguard.pipeline.evaluating import evaluate_cached, evaluate_live
from deepfailguard.pipeline.evidence import cache_distances, check_same_data, with_test_faults
from deepfailguard.pipeline.guarding import GuardParts
from deepfailguard.pipeline.path import Places, run_path
from deepfailguard.pipeline.studying import StudyPlan, study
from deepfailguard.pipeline.training import TrainRequest
from deepfailguard.predictor.kde import KdePredictor
from deepfailguard.predictor.prior import PriorPredictor
from deepfailguard.versions.pool import Pool
from deepfailguard.versions.spec import Recipe
from tests.examples import Bars, TinyNet, bar_splits, bars

CPU = torch.device("cpu")
RECIPE = Recipe(epochs=12, batch_size=32, learning_rate=0.01)
TRUSTED = ("tests", "deepfailguard")
DISTANCE = FoolboxDeepFool(batch_size=32, steps=20)


def requests() -> list[TrainRequest]:
    noisy = [LabelNoise(rate=0.4)]
    return [
        TrainRequest(Bars(), TinyNet(width=4, name="narrow"), RECIPE),
        TrainRequest(Bars(), TinyNet(width=8, name="middle"), RECIPE),
        TrainRequest(Bars(), TinyNet(width=12, name="wide"), RECIPE),
        TrainRequest(Bars(), TinyNet(width=4, name="narrow"), RECIPE, noisy),
        TrainRequest(Bars(), TinyNet(width=8, name="middle"), RECIPE, noisy),
    ]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    folder = tmp_path_factory.mktemp("path")
    return Places(Pool(folder / "pool", TRUSTED), folder / "cache", folder / "guard")


@pytest.fixture(scope="module")
def evaluation(places: Places) -> Evaluation:
    torch.set_num_threads(1)
    return run_path(requests(), GuardParts(KdePredictor(), highest_posterior, DISTANCE), places, CPU)


def assert_same_verdicts(one: Evaluation, other: Evaluation) -> None:
    for part in ("labels", "failure_probability", "weights", "abstained"):
        assert torch.equal(getattr(one.decision, part), getattr(other.decision, part)), part
    for part in ("labels", "distance", "found"):
        assert torch.equal(getattr(one.evidence, part), getattr(other.evidence, part)), part
    assert torch.equal(one.failure_probability, other.failure_probability)


def test_the_whole_path_runs_and_runs_again(evaluation: Evaluation, places: Places) -> None:
    assert evaluation.names == ("narrow-s0", "middle-s0", "wide-s0", "narrow+label_noise-s0", "middle+label_noise-s0")
    assert evaluation.faults == ("", "", "", "label_noise", "label_noise")
    assert float((evaluation.decision.labels == evaluation.truth).double().mean()) > 0.5
    again = run_path(requests(), GuardParts(KdePredictor(), highest_posterior, DISTANCE), places, CPU)
    assert_same_verdicts(evaluation, again)


def test_live_and_cached_evaluation_agree_bit_for_bit(evaluation: Evaluation, places: Places) -> None:
    guard = GuardedPredictor.load(places.guard, trusted=TRUSTED)
    splits = bar_splits()
    live = evaluate_live(guard, splits)
    cached = evaluate_cached(load_guard(places.guard, TRUSTED), splits, places.cache)
    assert_same_verdicts(live, cached)
    assert_same_verdicts(live, evaluation)


def test_cached_evaluation_of_unseen_inputs_says_what_to_run(evaluation: Evaluation, places: Places) -> None:
    noisy = with_test_faults(bar_splits(), [NoisyInputs()], seed=0)
    with pytest.raises(
        CacheMissError, match=r"100 of 100 distances of version narrow-s0 .* run scripts/cache_distances\.py"
    ):
        evaluate_cached(load_guard(places.guard, TRUSTED), noisy, places.cache)
    cards = places.pool.cards("bars")
    cache_distances(cards, {"test": noisy.test.images}, DISTANCE, places.cache, places.pool, CPU)
    assert len(evaluate_cached(load_guard(places.guard, TRUSTED), noisy, places.cache).truth) == 100


def test_a_study_covers_every_ensemble_of_both_settings(evaluation: Evaluation, places: Places, tmp_path: Path) -> None:
    plan = StudyPlan(places.pool.cards("bars"), bar_splits(), DISTANCE, places.cache, [NoisyInputs()])
    rules = {"paper": KdePredictor(), "prior": PriorPredictor()}
    done = study(plan, rules, [2, 3], places.pool, CPU)
    counted = {(s, n): 0 for s in ("sound", "same_fault", "one_faulty") for n in (2, 3)}
    for row in done.rows:
        counted[row.setting, row.size] += row.rule == "paper"
    # sound: 3 of 3 families; label_noise in 2 families; noisy_inputs in 3; one faulty with the other sound families
    assert counted == {
        ("sound", 2): 3,
        ("sound", 3): 1,
        ("same_fault", 2): 1 + 3,
        ("same_fault", 3): 0 + 1,
        ("one_faulty", 2): 2 * 2 + 3 * 2,
        ("one_faulty", 3): 2 * 1 + 3 * 1,
    }
    for row in done.rows:
        assert row.majority <= row.oracle
        assert row.accuracy <= row.oracle
        if row.rule == "prior":
            assert row.accuracy == row.best_single  # the best single version is what the prior alone chooses
    page = done.write(tmp_path)
    assert page.is_file()
    with (tmp_path / "study.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(done.rows)
    assert json.loads((tmp_path / "study.json").read_text())


@dataclass(frozen=True)
class OtherBars:
    """A test set of its own, with labels and a length of its own."""

    count: int

    def load(self) -> Splits:
        return replace(bar_splits(), test=bars(self.count, seed=77))


@pytest.mark.parametrize("count", [100, 40])
def test_a_fault_with_test_inputs_of_its_own_is_scored_on_their_truth(
    evaluation: Evaluation, places: Places, count: int
) -> None:
    shift = NaturalShiftV4(OtherBars(count))
    plan = StudyPlan(places.pool.cards("bars"), bar_splits(), DISTANCE, places.cache, [shift])
    rows = study(plan, {"prior": PriorPredictor()}, [2, 3], places.pool, CPU).rows
    shifted = [row for row in rows if row.fault == "natural_shift_v4"]
    assert {row.setting for row in shifted} == {"same_fault"}
    test = bars(count, seed=77)
    cards = {f"{card.name} under natural_shift_v4": card for card in places.pool.cards("bars")}
    for row in shifted:
        wanted = [cards[name] for name in row.members.split(", ")]
        right = [places.pool.load(c, CPU).logits(test.images).argmax(1) == test.labels for c in wanted]
        assert row.oracle == pytest.approx(float(torch.stack(right).any(0).double().mean()))


def test_a_study_without_two_families_says_so(evaluation: Evaluation, places: Places) -> None:
    plan = StudyPlan(places.pool.select(["wide-s0"], "bars"), bar_splits(), DISTANCE, places.cache)
    with pytest.raises(ConfigurationError, match="train more families"):
        study(plan, {"paper": KdePredictor()}, [2], places.pool, CPU)


def test_a_version_that_fails_live_is_named_in_the_evaluation(evaluation: Evaluation, places: Places) -> None:
    guard = GuardedPredictor.load(places.guard, trusted=TRUSTED)
    guard.versions[1].model.register_forward_hook(_out_of_memory)
    facts = evaluate_live(guard, bar_splits()).facts
    assert facts["middle-s0 failed"] == "100 inputs without an answer; MemoryError: CUDA out of memory"


def _out_of_memory(*_: object) -> None:
    raise MemoryError("CUDA out of memory")


def test_versions_that_may_have_seen_the_calibration_images_are_refused(evaluation: Evaluation, places: Places) -> None:
    with pytest.raises(ConfigurationError, match=r"trained on another split of 'bars'.*dataset\.limit"):
        check_same_data(places.pool.cards("bars"), bar_splits(200))


def test_versions_of_other_classes_are_refused(evaluation: Evaluation, places: Places) -> None:
    other = replace(bar_splits(), classes=("x", "y", "z"))
    with pytest.raises(ConfigurationError, match=r"answers for 3 classes bar 0, bar 1, bar 2.*has 3: x, y, z"):
        check_same_data(places.pool.cards("bars"), other)
    with pytest.raises(ConfigurationError, match="does not act on test inputs"):
        with_test_faults(bar_splits(), [LabelNoise()], seed=0)
