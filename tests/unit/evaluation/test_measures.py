import json

import pytest
import torch

from deepfailguard.decision.rules import highest_posterior, majority_vote, single_version
from deepfailguard.errors import DataFormatError
from deepfailguard.evaluation.measures import (
    EnsembleMeasures,
    check_answers,
    known_rescue_share,
    measure_ensemble,
    oracle,
    rescue_share,
)
from deepfailguard.seeding import generator

# Truth is 0 throughout; versions A, B, C by column.
LABELS = torch.tensor(
    [
        [0, 0, 0],  # all right
        [0, 0, 1],  # e1: majority right
        [1, 0, 0],  # e1: majority right, the guard follows A: broken
        [0, 1, 1],  # e2: majority wrong, the guard follows A: revised
        [2, 2, 0],  # e2: majority wrong, the guard too
        [1, 1, -1],  # e3
    ]
)
TRUTH = torch.zeros(6, dtype=torch.int64)
FAILURE = torch.tensor(
    [[0.1, 0.2, 0.3], [0.1, 0.2, 0.3], [0.1, 0.2, 0.3], [0.1, 0.2, 0.3], [0.5, 0.6, 0.7], [0.8, 0.9, 1.0]]
)


def _measure(best_single: int = 1) -> EnsembleMeasures:
    guard = highest_posterior(LABELS, FAILURE, abstain_above=0.4)
    return measure_ensemble(LABELS, TRUTH, guard, majority_vote(LABELS, FAILURE), best_single)


def test_a_case_counted_by_hand() -> None:
    measures = _measure()
    assert measures.inputs == 6
    assert measures.version_accuracy == (3 / 6, 3 / 6, 3 / 6)
    assert (measures.guard, measures.majority, measures.oracle) == (3 / 6, 3 / 6, 5 / 6)
    assert measures.best_single == 3 / 6
    assert measures.lower_limit == 1 / 6
    assert measures.absolute_improvement == 0
    assert measures.rescue_share == 0
    assert (measures.revised, measures.broken) == (1, 1)
    assert (measures.coverage, measures.answered_accuracy) == (4 / 6, 3 / 4)


def test_error_classes_counted_by_hand() -> None:
    first, second, third = _measure().error_classes
    assert (first.wrong_versions, second.wrong_versions, third.wrong_versions) == (1, 2, 3)
    assert (first.inputs, second.inputs, third.inputs) == (2, 2, 1)
    assert (first.guard_right, first.majority_right, first.best_single_right) == (1, 2, 2)
    assert (second.guard_right, second.majority_right, second.best_single_right) == (1, 0, 0)
    assert (third.guard_right, third.majority_right, third.best_single_right) == (0, 0, 0)
    assert (first.revised, first.broken, second.revised, second.broken) == (0, 1, 1, 0)


def test_classes_add_up_to_the_accuracies() -> None:
    random = generator(0, "measures")
    labels = torch.randint(-1, 3, (700, 4), generator=random)
    truth, failure = torch.randint(0, 3, (700,), generator=random), torch.rand(700, 4, generator=random)
    guard, vote = highest_posterior(labels, failure), majority_vote(labels, failure)
    measures = measure_ensemble(labels, truth, guard, vote, 2)
    all_right = round(measures.lower_limit * 700)
    classes = measures.error_classes
    assert sum(each.inputs for each in classes) + all_right == 700
    assert sum(each.guard_right for each in classes) + all_right == round(measures.guard * 700)
    assert sum(each.majority_right for each in classes) + all_right == round(measures.majority * 700)
    assert sum(each.best_single_right for each in classes) + all_right == round(measures.best_single * 700)
    assert measures.revised - measures.broken == round(measures.absolute_improvement * 700)
    assert classes[-1].guard_right == 0
    assert round(measures.oracle * 700) == 700 - classes[-1].inputs
    expected = (measures.guard - measures.majority) / (measures.oracle - measures.majority)
    assert measures.rescue_share == pytest.approx(expected)


def test_the_oracle_rescues_everything() -> None:
    labels = torch.tensor([[1, 0], [1, 0], [0, 0]])
    truth = torch.tensor([0, 1, 0])
    votes = majority_vote(labels, torch.zeros(3, 2))
    best = single_version(torch.tensor([[0], [1], [0]]), torch.zeros(3, 1), version=0)
    measures = measure_ensemble(labels, truth, best, votes, 0)
    assert measures.oracle == measures.guard == 1
    assert measures.rescue_share == 1


def test_without_headroom_there_is_no_rescue_share() -> None:
    labels, truth = torch.zeros(4, 3, dtype=torch.int64), torch.tensor([0, 0, 1, 1])
    vote = majority_vote(labels, torch.zeros(4, 3))
    measures = measure_ensemble(labels, truth, vote, vote, 0)
    assert measures.headroom == 0
    assert measures.rescue_share is None


def test_the_rescue_share_of_counts_and_of_accuracies_is_one() -> None:
    guard, majority, best = torch.tensor([9, 4, 7]), torch.tensor([5, 5, 7]), torch.tensor([7, 7, 7])
    shares = rescue_share(guard, majority, best)
    assert shares[:2].tolist() == [2.0, -0.5]
    assert bool(shares[2].isnan())
    assert known_rescue_share(0.9, 0.5, 0.7) == pytest.approx(2.0)
    assert known_rescue_share(0.7, 0.7, 0.7) is None


def test_answers_that_do_not_fit_the_truth_are_refused() -> None:
    check_answers(LABELS[:0], TRUTH[:0], least=0)
    with pytest.raises(DataFormatError, match=r"\(B, N\) with N >= 1, got torch.int64 \(6, 0\)"):
        check_answers(LABELS[:, :0], TRUTH, least=0)
    with pytest.raises(DataFormatError, match=r"B, N >= 1, got torch.int64 \(0, 3\)"):
        check_answers(LABELS[:0], TRUTH[:0])
    with pytest.raises(DataFormatError, match=r"truth must be int64 \(6,\) like the inputs, got torch.float32"):
        check_answers(LABELS, TRUTH.float())


def test_a_guard_that_always_abstains_has_no_answered_accuracy() -> None:
    guard = highest_posterior(LABELS, torch.ones(6, 3), abstain_above=0.5)
    measures = measure_ensemble(LABELS, TRUTH, guard, guard, 0)
    assert measures.coverage == 0
    assert measures.answered_accuracy is None


def test_the_dictionary_is_flat_json() -> None:
    flat = _measure().as_dict()
    assert json.loads(json.dumps(flat, allow_nan=False)) == flat
    assert (flat["e1"], flat["e2"], flat["e3"]) == (2, 2, 1)
    assert (flat["e2_revised"], flat["e1_broken"], flat["e1_majority_right"]) == (1, 1, 2)
    assert (flat["versions"], flat["version_2_accuracy"], flat["rescue_share"]) == (3, 0.5, 0.0)


def test_oracle_ignores_missing_answers() -> None:
    assert oracle(torch.tensor([[-1, 2], [-1, -1]]), torch.tensor([2, 0])).tolist() == [True, False]


def test_wrong_input() -> None:
    vote = majority_vote(LABELS, FAILURE)
    with pytest.raises(DataFormatError, match=r"truth must be int64 \(6,\)"):
        measure_ensemble(LABELS, TRUTH[:5], vote, vote, 0)
    with pytest.raises(DataFormatError, match=r"decision's labels must be \(6,\)"):
        measure_ensemble(LABELS, TRUTH, majority_vote(LABELS[:2], FAILURE[:2]), vote, 0)
    with pytest.raises(DataFormatError, match=r"best_single must be in \[0, 3\), got 3"):
        measure_ensemble(LABELS, TRUTH, vote, vote, 3)
    with pytest.raises(DataFormatError, match="true labels must be >= 0"):
        measure_ensemble(LABELS, TRUTH - 1, vote, vote, 0)
    with pytest.raises(DataFormatError, match="B, N >= 1"):
        measure_ensemble(LABELS[:0], TRUTH[:0], vote, vote, 0)
