"""The whole path with distances that are learned from a search for each version."""

import copy
from collections.abc import Generator
from pathlib import Path

import pytest
import torch

from deepfailguard.boundary.estimates.calibrated import CalibratedDistance
from deepfailguard.boundary.estimates.distilling import Teaching
from deepfailguard.boundary.estimates.last_layer import LastLayerDistance
from deepfailguard.boundary.estimates.learned import LearnedDistance
from deepfailguard.boundary.fitting import fitted
from deepfailguard.boundary.search.estimator import BoundarySearch
from deepfailguard.boundary.searching import for_version
from deepfailguard.decision.rules import highest_posterior
from deepfailguard.errors import ConfigurationError, NotFittedError
from deepfailguard.evaluation.records import Evaluation
from deepfailguard.guard.guarded import GuardedPredictor
from deepfailguard.guard.saved import load_guard
from deepfailguard.pipeline.evaluating import evaluate_cached, evaluate_live
from deepfailguard.pipeline.evidence import cache_distances
from deepfailguard.pipeline.guarding import GuardParts, fit_distance, train_guard
from deepfailguard.pipeline.launching.base import Outcome
from deepfailguard.pipeline.launching.inline import Inline
from deepfailguard.pipeline.launching.work import Work
from deepfailguard.pipeline.training import TrainRequest, train_version
from deepfailguard.predictor.kde import KdePredictor
from deepfailguard.store import load_json, save_json
from deepfailguard.training.trainer import Trainer
from deepfailguard.versions.card import IdentityCard
from deepfailguard.versions.pool import Pool
from deepfailguard.versions.spec import Recipe
from tests.examples import Bars, TinyNet, bar_splits, template_model

CPU = torch.device("cpu")
TRUSTED = ("tests", "deepfailguard")
TEACHER = BoundarySearch("fast", batch_size=32)
DISTANCES = {
    "learned": LearnedDistance(TEACHER, Teaching(width=8, epochs=3), batch_size=32),
    "calibrated": CalibratedDistance(LastLayerDistance(batch_size=32), TEACHER),
}
SPLITS = bar_splits()


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return Pool(tmp_path_factory.mktemp("pool"), TRUSTED)


@pytest.fixture(scope="module")
def cards(pool: Pool) -> list[IdentityCard]:
    torch.set_num_threads(1)
    recipe = Recipe(epochs=6, batch_size=32, learning_rate=0.01)
    requests = [TrainRequest(Bars(), TinyNet(width=width, name=f"net{width}"), recipe) for width in (4, 8)]
    return [train_version(request, pool, Trainer(CPU)).card for request in requests]


def assert_same(one: Evaluation, other: Evaluation) -> None:
    assert torch.equal(one.decision.labels, other.decision.labels)
    assert torch.equal(one.failure_probability, other.failure_probability)
    for part in ("labels", "distance", "found"):
        assert torch.equal(getattr(one.evidence, part), getattr(other.evidence, part)), part


@pytest.mark.parametrize("kind", sorted(DISTANCES))
def test_live_and_cached_evaluation_agree_bit_for_bit(
    pool: Pool, cards: list[IdentityCard], tmp_path: Path, kind: str
) -> None:
    cache, parts = tmp_path / "cache", GuardParts(KdePredictor(), highest_posterior, DISTANCES[kind])
    images = {"calibration": SPLITS.calibration.images, "test": SPLITS.test.images}
    distance = fit_distance(cards, SPLITS.calibration.images, parts.distance, pool, CPU, cache)
    cache_distances(cards, images, distance, cache, pool, CPU)
    guard = train_guard(cards, SPLITS, parts, pool, CPU, cache)
    guard.save(tmp_path / "guard")
    loaded = GuardedPredictor.load(tmp_path / "guard", trusted=TRUSTED)
    live = evaluate_live(loaded, SPLITS)
    cached = evaluate_cached(load_guard(tmp_path / "guard", TRUSTED), SPLITS, cache)
    assert_same(live, cached)
    assert live.evidence.found.all()
    assert cached.calibration is not None


def test_fitting_again_finds_what_was_learned(
    pool: Pool,
    cards: list[IdentityCard],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    arguments = (cards, SPLITS.calibration.images, DISTANCES["learned"], pool, CPU, tmp_path)
    with caplog.at_level("INFO", logger="deepfailguard"):
        first = fit_distance(*arguments)
    for card in cards:
        assert f"LearnedDistance of {card.name} (weights {card.fingerprint[:16]}): Spearman " in caplog.text
    monkeypatch.setattr(LearnedDistance, "fit", None)  # must not be asked
    assert fit_distance(*arguments) == first
    for file in (tmp_path / "learned").iterdir():
        file.write_text("damaged")
    with pytest.raises(TypeError):
        fit_distance(*arguments)


@pytest.mark.parametrize("change", ["renamed class", "unknown field", "refused value"])
def test_what_another_release_kept_is_learned_again(
    pool: Pool, cards: list[IdentityCard], tmp_path: Path, caplog: pytest.LogCaptureFixture, change: str
) -> None:
    arguments = (cards[:1], SPLITS.calibration.images, DISTANCES["learned"], pool, CPU, tmp_path)
    first = fit_distance(*arguments)
    (file,) = (tmp_path / "learned").iterdir()
    kept = load_json(file)
    if change == "renamed class":
        kept["_target_"] += "Formerly"
    elif change == "unknown field":
        kept["more"] = 1
    else:
        kept["quality"]["_target_"] = "deepfailguard.types.Bounds"
    save_json(file, kept)
    assert fit_distance(*arguments) == first
    assert "it will be learned again" in caplog.text


def test_a_fingerprint_of_another_model_is_refused_before_the_search(
    pool: Pool, cards: list[IdentityCard], tmp_path: Path
) -> None:
    model = pool.load(cards[0], CPU).model
    for cache in (None, tmp_path):
        with pytest.raises(ConfigurationError, match=r"expected a model of the version .* use the fingerprint of this"):
            fitted(DISTANCES["learned"], model, cards[1].fingerprint, SPLITS.calibration.images, cache)
    assert not list(tmp_path.rglob("*.parquet"))


@pytest.mark.parametrize("kind", sorted(DISTANCES))
def test_a_launcher_searches_what_is_learned_from(
    pool: Pool, cards: list[IdentityCard], tmp_path: Path, kind: str
) -> None:
    calibration, done = SPLITS.calibration.images, []

    class Recording(Inline):
        def run(self, work: Work) -> Generator[Outcome, None, None]:
            done.extend(work.units)
            yield from Inline().run(work)

    alone = fit_distance(cards, calibration, DISTANCES[kind], pool, CPU, tmp_path / "a")
    launched = fit_distance(cards, calibration, DISTANCES[kind], pool, CPU, tmp_path / "b", Recording())
    assert launched == alone
    assert {unit.job for unit in done} == {0, 1}
    done.clear()
    fit_distance(cards, calibration, DISTANCES[kind], pool, CPU, tmp_path / "b", Recording())
    assert not done


def test_the_key_of_one_version_does_not_depend_on_the_others(
    pool: Pool, cards: list[IdentityCard], tmp_path: Path
) -> None:
    calibration = SPLITS.calibration.images
    both = fit_distance(cards, calibration, DISTANCES["learned"], pool, CPU, tmp_path / "a")
    one = fit_distance(cards[1:], calibration, DISTANCES["learned"], pool, CPU, tmp_path / "b")
    print_of_one = cards[1].fingerprint
    assert for_version(both, print_of_one) == for_version(one, print_of_one)
    with pytest.raises(NotFittedError):
        for_version(one, cards[0].fingerprint)


def test_estimators_that_learn_nothing_are_left_alone(pool: Pool, cards: list[IdentityCard], tmp_path: Path) -> None:
    distance = LastLayerDistance()
    assert fit_distance(cards, SPLITS.calibration.images, distance, pool, CPU, tmp_path) is distance
    assert for_version(distance, cards[0].fingerprint) is distance
    assert not any(tmp_path.iterdir())


def test_a_guard_without_pool_or_cache_fits_its_distance(tmp_path: Path) -> None:
    models = {"sure": template_model(0, 0.1), "fair": template_model(1, 0.5)}
    calibration = (SPLITS.calibration.images, SPLITS.calibration.labels)
    kde, distance = KdePredictor(), DISTANCES["learned"]
    guard = GuardedPredictor.fit(models, calibration, predictor=kde, distance=distance)
    verdict = guard(SPLITS.test.images)
    assert not verdict.degraded
    assert verdict.found.all()
    guard.save(tmp_path)
    again = GuardedPredictor.load(tmp_path, {name: template_model() for name in models})
    assert torch.equal(again(SPLITS.test.images).distance, verdict.distance)
    assert torch.equal(copy.deepcopy(guard)(SPLITS.test.images).distance, verdict.distance)
    cached = GuardedPredictor.fit(models, calibration, predictor=kde, distance=distance, cache=tmp_path / "cache")
    assert torch.equal(cached(SPLITS.test.images).distance, verdict.distance)
