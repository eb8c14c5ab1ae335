import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import mode
from sklearn.metrics import brier_score_loss, roc_auc_score

from deepfailguard.errors import DataFormatError
from deepfailguard.evaluation.records import Evaluation
from deepfailguard.evaluation.report.summary import majority_of, summarise


def test_the_ensemble_equals_an_independent_count(evaluation: Evaluation) -> None:
    measures = summarise(evaluation).measures
    labels, truth = evaluation.evidence.labels.numpy(), evaluation.truth.numpy()
    vote = mode(labels, axis=1).mode
    most_trusted = labels[np.arange(len(truth)), evaluation.failure_probability.numpy().argmin(1)]
    right = labels == truth[:, None]
    assert measures.majority == pytest.approx(np.mean(vote == truth))
    assert measures.guard == pytest.approx(np.mean(most_trusted == truth))
    assert measures.oracle == pytest.approx(np.mean(right.any(1)))
    assert measures.best_single == pytest.approx(right[:, 2].mean())
    gain, headroom = measures.guard - measures.majority, measures.oracle - measures.majority
    assert measures.absolute_improvement == pytest.approx(gain)
    assert measures.rescue_share == pytest.approx(gain / headroom)
    counted = Counter((~right).sum(1).tolist())
    assert [each.inputs for each in measures.error_classes] == [counted[k] for k in (1, 2, 3)]
    assert measures.revised == int(((most_trusted == truth) & (vote != truth)).sum())
    assert measures.broken == int(((most_trusted != truth) & (vote == truth)).sum())


def test_every_version_equals_scikit_learn(evaluation: Evaluation) -> None:
    summary = summarise(evaluation)
    wrong = (evaluation.evidence.labels != evaluation.truth[:, None]).numpy()
    probability = evaluation.failure_probability.numpy()
    for i, version in enumerate(summary.versions):
        assert version.accuracy == pytest.approx(1 - wrong[:, i].mean())
        assert version.calibration_accuracy == pytest.approx(float(evaluation.calibration_accuracy[i]))
        assert version.failure.auroc == pytest.approx(roc_auc_score(wrong[:, i], probability[:, i]))
        assert version.failure.brier == pytest.approx(brier_score_loss(wrong[:, i], probability[:, i]))
        sorted_wrong = wrong[probability[:, i].argsort(), i]
        risks = sorted_wrong.cumsum() / np.arange(1, len(sorted_wrong) + 1)
        assert version.failure.aurc == pytest.approx(risks.mean())
    guard_wrong = (evaluation.decision.labels != evaluation.truth).numpy()
    expected = roc_auc_score(guard_wrong, evaluation.decision.failure_probability.numpy())
    assert summary.guard_failure.auroc == pytest.approx(expected)


def test_the_best_single_version_is_chosen_by_calibration_not_by_test(evaluation: Evaluation) -> None:
    chosen = replace(evaluation, calibration_accuracy=torch.tensor([0.1, 0.9, 0.9], dtype=torch.float64))
    summary = summarise(chosen)
    assert summary.best_single == "version1-s0"
    assert summary.measures.best_single == summary.versions[1].accuracy


def test_intervals_hold_the_estimate(evaluation: Evaluation) -> None:
    summary = summarise(evaluation)
    assert summary.over_majority.estimate == pytest.approx(summary.measures.absolute_improvement)
    assert summary.over_best_single.estimate == pytest.approx(summary.measures.guard - summary.measures.best_single)
    assert summary.over_majority.low <= summary.over_majority.estimate <= summary.over_majority.high


def test_undefined_measures_are_none_in_json(all_right: Evaluation) -> None:
    content = json.loads(json.dumps(summarise(all_right).as_dict(), allow_nan=False))
    assert content["ensemble"]["guard"] == 1.0
    assert content["ensemble"]["rescue_share"] is None
    assert content["versions"][0]["auroc"] is None
    assert content["guard_failure_prediction"]["fpr_at_95_tpr"] is None
    assert content["classes"] == ["no", "yes"]


def test_remarks_of_a_single_version_compare_it_with_nothing(random: Callable[..., Evaluation]) -> None:
    assert summarise(random(versions=1)).remarks == []


def test_missing_answers_are_told(build: Callable[..., Evaluation]) -> None:
    truth = torch.tensor([0, 1, 2])
    labels = torch.tensor([[0, -1], [1, 1], [2, -1]])
    probability = torch.tensor([[0.1, 1.0], [0.1, 0.2], [0.1, 1.0]])
    summary = summarise(build(labels, truth, probability))
    assert [version.unanswered for version in summary.versions] == [0, 2]
    assert "version1-s0 gave no answer to 2 inputs." in summary.remarks


def test_abstentions_are_told_but_do_not_change_accuracy(random: Callable[..., Evaluation]) -> None:
    careful, bold = random(abstain_above=0.2), random()
    abstained = float(careful.decision.abstained.double().mean())
    assert 0 < abstained < 1
    summary = summarise(careful)
    assert summary.measures.coverage == pytest.approx(1 - abstained)
    assert summary.measures.guard == summarise(bold).measures.guard
    assert any("The guard abstains on" in remark for remark in summary.remarks)


def test_the_vote_needs_no_failure_probabilities(evaluation: Evaluation) -> None:
    unknown = replace(evaluation, failure_probability=torch.full_like(evaluation.failure_probability, torch.nan))
    assert torch.equal(majority_of(unknown).labels, majority_of(evaluation).labels)


def test_an_evaluation_without_inputs_is_refused(build: Callable[..., Evaluation]) -> None:
    empty = build(torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 2))
    with pytest.raises(DataFormatError, match="labels must be"):
        summarise(empty)
