"""The benchmark of failure prediction: single scores, ensembles, wins."""

import doctest
import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from benchmarks.decisions.images import CALIBRATION, TEST
from benchmarks.failing import figures, measuring, single_scores
from benchmarks.failing.figures import as_plain, bars_for, judge_lines, version_lines, wins_of
from benchmarks.failing.measuring import (
    ALONE,
    PREDICTORS,
    SCORES_ALONE,
    TOGETHER,
    UNREHEARSED,
    Judged,
    Measures,
    groups,
    judge_pool,
    mean_of,
    measures_of,
)
from benchmarks.failing.single_scores import AGREEMENT, agreement, as_failure
from benchmarks.failing.steadiness import SCORES_STEADY, STABILITY, Steadiness, judge_stability
from benchmarks.reporting import as_json
from deepfailguard.seeding import generator
from deepfailguard.types import Bounds, Evidence
from deepfailguard.versions.stability import stability
from deepfailguard.versions.version import Version
from tests.examples import Affine
from tests.made_up_pool import CLASSES, pool_evidence

NOTHING = math.nan


@pytest.mark.parametrize("module", [single_scores, measuring], ids=lambda module: module.__name__)
def test_doctests(module: ModuleType) -> None:
    results = doctest.testmod(module)
    assert results.attempted > 0
    assert results.failed == 0


def linear_version(count: int, seed: int) -> tuple[Evidence, Tensor, Tensor]:
    """A version whose last layer is linear; its evidence, the truth, and the layer."""
    random = generator(seed, "features")
    weight = torch.randn(CLASSES, 5, generator=generator(0, "weight"))
    truth = torch.randint(CLASSES, (count,), generator=random)
    features = weight[truth] + torch.randn(count, 5, generator=random)
    logits = features @ weight.T + 1
    found = torch.rand(count, 1, generator=random) < 0.8
    evidence = Evidence(logits.argmax(1)[:, None], torch.rand(count, 1), found, logits[:, None], (features,))
    return evidence, truth, weight


def scores() -> tuple[dict[str, Tensor], Evidence, Tensor]:
    known, truth, weight = linear_version(200, 0)
    asked, _, _ = linear_version(50, 1)
    return single_scores.single_scores(asked, known, truth), asked, weight


def test_scores_grow_with_trust() -> None:
    told, asked, _ = scores()
    wrong = asked.labels[:, 0] != linear_version(50, 1)[1]
    for name in ("maximum softmax", "margin", "logit gap", "entropy", "last-layer distance", "neighbours' classes"):
        measures = measures_of(as_failure(told[name], asked.answered[:, 0]), wrong, probability=False)
        assert measures.auroc > 0.6, name
        assert math.isnan(measures.ece)


def test_typical_features_are_near_those_of_calibration() -> None:
    known, truth, _ = linear_version(200, 0)
    assert known.features is not None
    bank = known.features[0].double()
    means = torch.stack([bank[truth == k].mean(0) for k in range(CLASSES)])
    told, asked, _ = scores()
    assert asked.features is not None
    features = asked.features[0].double()
    nearest = torch.stack([(features - mean).norm(dim=1) for mean in means]).amin(0)
    assert torch.allclose(told["nearest class mean"], -nearest)
    unit, units = features / features.norm(dim=1, keepdim=True), bank / bank.norm(dim=1, keepdim=True)
    tenth = (unit[0] - units).norm(dim=1).sort().values[9]
    assert float(told["nearest neighbours"][0]) == pytest.approx(-float(tenth), rel=1e-6)


def test_the_last_layer_s_distance_is_that_of_its_weights() -> None:
    told, asked, weight = scores()
    assert asked.logits is not None
    logits, labels = asked.logits[:, 0].double(), asked.labels[:, 0]
    for row in range(10):
        own = int(labels[row])
        distances = [
            float((logits[row, own] - logits[row, k]) / (weight[own] - weight[k]).double().norm())
            for k in range(CLASSES)
            if k != own
        ]
        assert float(told["last-layer distance"][row]) == pytest.approx(min(distances), rel=1e-4)


def test_a_last_layer_that_is_not_linear_has_no_distance() -> None:
    known, truth, _ = linear_version(200, 0)
    assert known.logits is not None
    bent = Evidence(known.labels, known.distance, known.found, known.logits.square(), known.features)
    assert "last-layer distance" not in single_scores.single_scores(bent, bent, truth)


def test_an_answer_that_no_search_flipped_is_trusted_most() -> None:
    told, asked, _ = scores()
    failure = as_failure(told["boundary distance"], asked.answered[:, 0])
    assert failure[~asked.found[:, 0]].tolist() == [0.0] * int((~asked.found).sum())


def test_who_did_not_answer_is_trusted_least() -> None:
    failure = as_failure(torch.tensor([3.0, 2.0, 1.0]), torch.tensor([False, True, True]))
    assert failure.tolist() == [1.0, 0.0, 0.5]


def test_agreement_counts_the_others() -> None:
    labels = torch.tensor([[1, 1, 1], [1, 1, 2], [0, 1, 2]])
    assert agreement(labels, 0).tolist() == [1.0, 0.5, 0.0]
    assert agreement(labels, 2).tolist() == [1.0, 0.0, 0.0]


def test_each_version_is_in_as_many_ensembles_as_there_are_draws() -> None:
    chosen = groups(9, 3, 4, seed=7)
    assert Counter(number for each in chosen for number in each) == dict.fromkeys(range(9), 4)
    assert groups(9, 3, 4, seed=7) == chosen != groups(9, 3, 4, seed=8)
    filled = Counter(number for each in groups(10, 3, 2, seed=7) for number in each)
    assert min(filled.values()) == 2
    assert sum(filled.values()) == 24


def test_measures_of_a_perfect_predictor() -> None:
    wrong = torch.tensor([True, False, False, False])
    told = measures_of(wrong.double(), wrong, probability=True)
    assert (told.auroc, told.excess, told.fpr95, told.ece, told.chance_ece) == (1.0, 0.0, 0.0, 0.0, 0.0)
    assert told.aurc == pytest.approx(1 / 16)
    never = measures_of(torch.zeros(4), torch.zeros(4, dtype=torch.bool), probability=True)
    assert math.isnan(never.auroc)


def test_chance_has_its_part_in_the_calibration_error() -> None:
    """Of a predictor that says one half of everything, |mean of B fair coins - 1/2| is what chance leaves."""
    told = measures_of(torch.full((400,), 0.5, dtype=torch.float64), torch.arange(400) < 200, probability=True)
    assert told.ece == 0
    assert told.chance_ece == pytest.approx(0.4 / 20, rel=0.5)  # the mean deviation is sqrt(2 / pi) / 2 / sqrt(B)


def measures(auroc: float, aurc: float, ece: float = NOTHING) -> Measures:
    return Measures(auroc, aurc, aurc, 0.2, ece, 0.01 if ece == ece else NOTHING)


def judged(auroc: float, aurc: float, fault: str | None = None) -> Judged:
    told = dict.fromkeys((*PREDICTORS, UNREHEARSED), measures(auroc, aurc, 0.015))
    return Judged("v", fault, 0.1, {**told, AGREEMENT: measures(0.9, 0.02), "margin": measures(0.8, 0.03)})


def test_means_leave_out_what_is_not_known() -> None:
    mean = mean_of([measures(0.5, 0.1), measures(NOTHING, 0.3)])
    assert mean.auroc == 0.5
    assert mean.aurc == pytest.approx(0.2)
    assert math.isnan(mean.ece)


def test_a_win_is_over_every_single_score() -> None:
    versions = [judged(0.95, 0.01), judged(0.85, 0.01), judged(0.95, 0.025), judged(NOTHING, 0.0)]
    together, alone = wins_of(versions, TOGETHER), wins_of(versions, ALONE)
    assert together.auroc == (True, False, True)
    assert together.aurc == (True, True, False)
    assert together.both == (True, False, False)
    assert alone.both == (True, True, True)  # alone nobody sees how many agree
    assert wins_of([judged(0.9, 0.01)], TOGETHER).auroc == (False,)  # equal is not better


def test_bars_hold_wins_and_calibration() -> None:
    bars = bars_for("digits", [judged(0.95, 0.01)] * 8 + [judged(0.85, 0.01)] * 2)
    told = {bar.text: bar for bar in bars if bar.text.startswith(TOGETHER)}
    wins, ece = told.values()
    assert (wins.figure, wins.verdict) == (0.8, "MISSED")
    assert wins.note == "AUROC 8, AURC 10, both 8 of 10"
    assert ece.figure == pytest.approx(0.015)
    assert ece.verdict == "reached"
    assert {bar.verdict for bar in bars if bar.text.startswith((ALONE, SCORES_ALONE))} == {"reached"}


def test_tables_have_a_line_for_each_judge_and_fault() -> None:
    versions = [judged(0.95, 0.01), judged(0.95, 0.01, "noise"), judged(NOTHING, 0.0, "noise")]
    assert len(judge_lines(versions)) == 1 + len(PREDICTORS) + 3
    lines = version_lines(versions)
    assert [line.split()[0] for line in lines] == ["fault", "sound", "noise", "all"]
    assert lines[-1].split()[1] == "2"
    assert version_lines([judged(NOTHING, 0.0)])[-1].split()[1:3] == ["0", "-"]
    content = as_json({}, {"data": [as_plain("digits", versions)]}, bars_for("digits", versions))
    assert (
        json.loads(json.dumps(content, allow_nan=False))["data"][0]["versions"][2]["measures"][ALONE]["auroc"] is None
    )


def test_a_pool_is_judged_once(tmp_path: Path) -> None:
    pool = pool_evidence("failing", 4, (90, 40))
    first = judge_pool(pool, 1, tmp_path, "code")
    files = sorted(tmp_path.iterdir())
    assert str([each.measures for each in judge_pool(pool, 1, tmp_path, "code")]) == str([e.measures for e in first])
    assert sorted(tmp_path.iterdir()) == files
    assert len(files) == 2 * 2 + 4  # two ensembles of three with and without rehearsal, and each version alone
    assert [each.version for each in first] == [f"family{number} 107" for number in range(4)]
    for each in first:
        assert {*PREDICTORS, UNREHEARSED, AGREEMENT, "maximum softmax", "boundary distance"} <= set(each.measures)
        assert each.measures[TOGETHER].auroc > 0.5
        assert figures.wins_of([each], ALONE).auroc in ((True,), (False,))


def test_stability_is_one_more_judge_and_asked_once(tmp_path: Path) -> None:
    pool, loaded = pool_evidence("failing", 2, (90, 40)), list[int]()

    def load(number: int) -> Version:
        loaded.append(number)
        model = Affine(torch.randn(CLASSES, 4, generator=generator(number, "weights")), torch.zeros(CLASSES))
        return Version.of(model, f"version {number}", CLASSES, Bounds())

    known = [judged(0.9, 0.02), judged(0.8, 0.03)]
    first = judge_stability(known, Steadiness(pool, load, tmp_path))
    assert sorted(loaded) == [0, 0, 1, 1]  # for calibration and for test images
    again = judge_stability(known, Steadiness(pool, load, tmp_path))
    assert len(loaded) == 4
    assert str([each.measures for each in again]) == str([each.measures for each in first])
    for before, after in zip(known, first, strict=True):
        assert set(after.measures) == {*before.measures, STABILITY, SCORES_STEADY}
        assert math.isnan(after.measures[STABILITY].ece)
        assert after.measures[SCORES_STEADY].auroc > 0.5
        assert 0 <= after.measures[SCORES_STEADY].ece <= 1


def test_kept_stability_is_that_of_the_version_and_the_images(tmp_path: Path) -> None:
    pool = pool_evidence("failing", 1, (9, 4))
    model = Affine(torch.randn(CLASSES, 4, generator=generator(0, "weights")), torch.zeros(CLASSES))
    steadiness = Steadiness(pool, lambda number: Version.of(model, "a", CLASSES, Bounds()), tmp_path)
    told, images = steadiness.of(CALIBRATION, 0), pool.parts[CALIBRATION].images.images
    assert told.stability is not None
    assert torch.equal(told.stability[:, 0], stability(model, images, told.labels[:, 0], Bounds()))
    assert steadiness.of(TEST, 0).labels.shape == (4, 1)
    assert len(list(tmp_path.iterdir())) == 2


def test_stability_is_a_rival_and_the_predictor_that_knows_it_is_none() -> None:
    told = judged(0.85, 0.01)
    stable = {STABILITY: measures(0.87, 0.02), SCORES_STEADY: measures(0.99, 0.001, 0.01)}
    more = replace(told, measures={**told.measures, **stable})
    assert wins_of([told], ALONE).both == (True,)
    assert wins_of([more], ALONE).both == (False,)
    assert wins_of([more], SCORES_STEADY).both == (True,)  # alone nobody sees how many agree
    assert len(judge_lines([more])) == len(judge_lines([told])) + 2
