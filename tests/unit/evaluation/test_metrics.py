import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve
from torch import Tensor, nn

from deepfailguard.decision.rules import highest_posterior, majority_vote
from deepfailguard.errors import ConfigurationError, DataFormatError
from deepfailguard.evaluation.failure_prediction import (
    area_under_generalised_risk_coverage,
    area_under_risk_coverage,
    auroc,
    coverage_at_risk,
    false_positive_rate,
)
from deepfailguard.evaluation.measures import measure_ensemble
from deepfailguard.evaluation.metrics import AUGRC, AURC, FPR95, CoverageAtRisk, Headroom, RescueShare
from deepfailguard.seeding import generator

# After our module, which lets torchmetrics be imported beside a CPU-only torch.
from torchmetrics import MetricCollection  # isort: skip
from torchmetrics.functional.classification import binary_auroc  # isort: skip

ROOT = Path(__file__).resolve().parents[3]
SIZES = [7, 0, 130, 1, 62]  # an empty batch among them


def _case(levels: int) -> tuple[Tensor, Tensor]:
    random = generator(0, "metrics", levels)
    failure = torch.randint(0, levels + 1, (sum(SIZES),), generator=random).double() / levels
    return failure, torch.rand(sum(SIZES), generator=random) < 0.1 + 0.6 * failure


def _answers() -> tuple[Tensor, Tensor, Tensor]:
    random = generator(0, "answers")
    labels = torch.randint(-1, 3, (sum(SIZES), 4), generator=random)
    return labels, torch.randint(0, 3, (sum(SIZES),), generator=random), torch.rand(labels.shape, generator=random)


def _metrics() -> dict[str, nn.Module]:
    return {
        "aurc": AURC(),
        "augrc": AUGRC(),
        "fpr95": FPR95(),
        "fpr50": FPR95(recall=0.5),
        "coverage": CoverageAtRisk(risk=0.2),
    }


def _of_all(failure: Tensor, wrong: Tensor) -> dict[str, float | None]:
    return {
        "aurc": area_under_risk_coverage(failure, wrong),
        "augrc": area_under_generalised_risk_coverage(failure, wrong),
        "fpr95": false_positive_rate(failure, wrong),
        "fpr50": false_positive_rate(failure, wrong, recall=0.5),
        "coverage": coverage_at_risk(failure, wrong, risk=0.2),
    }


@pytest.mark.parametrize("levels", [1, 7, 10**6])
def test_batches_give_the_measure_of_all_inputs(levels: int) -> None:
    failure, wrong = _case(levels)
    for name, metric in _metrics().items():
        for batch in zip(failure.split(SIZES), wrong.split(SIZES), strict=True):
            metric.update(*batch)
        value = metric.compute()
        assert value.dtype == torch.float64
        assert value.ndim == 0
        assert float(value) == _of_all(failure, wrong)[name], name


@pytest.mark.parametrize("levels", [7, 10**6])
def test_against_scikit_learn(levels: int) -> None:
    failure, wrong = _case(levels)
    metrics = _metrics()
    for metric in metrics.values():
        metric.update(failure, wrong)
    error = float(wrong.double().mean())
    by_paper = (1 - roc_auc_score(wrong, failure)) * error * (1 - error) + error**2 / 2
    assert float(metrics["augrc"].compute()) == pytest.approx(by_paper, abs=1e-12)
    fpr, tpr, _ = roc_curve(wrong, failure, drop_intermediate=False)
    assert float(metrics["fpr95"].compute()) == pytest.approx(fpr[tpr >= 0.95][0], abs=1e-12)
    assert float(metrics["fpr50"].compute()) == pytest.approx(fpr[tpr >= 0.5][0], abs=1e-12)


@pytest.mark.parametrize("levels", [7, 10**6])
def test_our_auroc_is_that_of_torchmetrics_to_its_float32(levels: int) -> None:
    failure, wrong = _case(levels)
    assert auroc(failure, wrong) == pytest.approx(float(binary_auroc(failure, wrong.long())), abs=1e-6)


def test_values_by_hand() -> None:
    failure = torch.tensor([0.1, 0.2, 0.3, 0.4])
    wrong = torch.tensor([False, True, False, True])
    values = {name: float(metric(failure, wrong)) for name, metric in _metrics().items()}
    assert values["aurc"] == pytest.approx((0 + 1 / 2 + 1 / 3 + 2 / 4) / 4)
    assert values["augrc"] == pytest.approx((0 + 1 / 2 + 1 + 3 / 2) / 16)
    assert values["fpr95"] == 1 / 2
    assert values["fpr50"] == 0
    assert values["coverage"] == 1 / 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ties_across_batches_of_other_dtypes_stay_ties(dtype: torch.dtype) -> None:
    failure = torch.tensor([0.3, 0.3, 0.7, 0.3, 0.7]).to(dtype)
    wrong = torch.tensor([True, False, True, False, False])
    for order in ([0, 1, 2, 3, 4], [3, 4, 0, 2, 1]):
        metric = AURC()
        metric.update(failure[order[:2]], wrong[order[:2]])
        metric.update(failure[order[2:]].double(), wrong[order[2:]])
        assert float(metric.compute()) == area_under_risk_coverage(failure, wrong)


def test_what_float32_cannot_tell_apart_is_no_tie() -> None:
    failure = torch.tensor([0.3, 0.3 + 1e-12], dtype=torch.float64)
    for wrong, expected in (([False, True], 1 / 4), ([True, False], 3 / 4)):
        metric = AURC()
        metric.update(failure, torch.tensor(wrong))
        assert float(metric.compute()) == expected


def test_all_right() -> None:
    values = {
        name: float(metric(torch.tensor([0.2, 0.9]), torch.zeros(2).bool())) for name, metric in _metrics().items()
    }
    assert (values["aurc"], values["augrc"], values["coverage"]) == (0, 0, 1)
    assert math.isnan(values["fpr95"])


def test_all_wrong() -> None:
    values = {
        name: float(metric(torch.tensor([0.2, 0.9]), torch.ones(2).bool())) for name, metric in _metrics().items()
    }
    assert (values["aurc"], values["augrc"], values["coverage"]) == (1, 0.5, 0)
    assert math.isnan(values["fpr95"])


def test_without_inputs_nothing_is_defined() -> None:
    for name, metric in _metrics().items():
        with pytest.warns(UserWarning, match="before the ``update`` method"):
            assert metric.compute().isnan(), name
        metric.update(torch.zeros(0), torch.zeros(0, dtype=torch.bool))
        assert metric.compute().isnan(), name
    for ensemble, batch in ((Headroom(), _answers()[:2]), (RescueShare(), (*_answers()[:2], _answers()[1]))):
        ensemble.update(*(each[:0] for each in batch))
        assert ensemble.compute().isnan()


def test_reset_forgets_and_forward_measures_its_batch_only() -> None:
    failure, wrong = _case(7)
    for name, metric in _metrics().items():
        for part in (slice(0, 60), slice(60, 200)):
            assert float(metric(failure[part], wrong[part])) == _of_all(failure[part], wrong[part])[name], name
        assert float(metric.compute()) == _of_all(failure, wrong)[name], name
        metric.reset()
        metric.update(failure[:60], wrong[:60])
        assert float(metric.compute()) == _of_all(failure[:60], wrong[:60])[name], name


def test_a_collection_shares_one_copy_of_the_inputs() -> None:
    failure, wrong = _case(7)
    collection = MetricCollection(_metrics())
    for batch in zip(failure.split(SIZES), wrong.split(SIZES), strict=True):
        collection.update(*batch)
    assert {name: float(value) for name, value in collection.compute().items()} == _of_all(failure, wrong)
    assert [sorted(group) for group in collection.compute_groups.values()] == [sorted(_metrics())]


def test_headroom_and_rescue_share_are_those_of_the_ensemble_measures() -> None:
    labels, truth, failure = _answers()
    guard = highest_posterior(labels, failure)
    measures = measure_ensemble(labels, truth, guard, majority_vote(labels, failure), 0)
    headroom, share = Headroom(), RescueShare()
    for some_labels, some_truth, some_guard in zip(
        labels.split(SIZES), truth.split(SIZES), guard.labels.split(SIZES), strict=True
    ):
        headroom.update(some_labels, some_truth)
        share.update(some_labels, some_truth, guard=some_guard)
    assert float(headroom.compute()) == pytest.approx(measures.headroom, abs=1e-15)
    assert measures.rescue_share is not None
    assert float(share.compute()) == pytest.approx(measures.rescue_share, abs=1e-12)
    assert share.compute().dtype == headroom.compute().dtype == torch.float64


def test_both_fit_into_one_collection() -> None:
    labels, truth, failure = _answers()
    collection = MetricCollection([Headroom(), RescueShare()])
    for rows in torch.arange(len(truth)).split(SIZES):
        guard = highest_posterior(labels[rows], failure[rows]).labels
        collection.update(labels=labels[rows], truth=truth[rows], guard=guard)
    share = RescueShare()
    share.update(labels, truth, highest_posterior(labels, failure).labels)
    assert float(collection.compute()["RescueShare"]) == float(share.compute())
    assert float(collection.compute()["Headroom"]) > 0


def test_rescue_share_by_hand() -> None:
    truth = torch.zeros(5, dtype=torch.int64)
    # Majority right, then wrong three times though a version is right, then all wrong or silent.
    labels = torch.tensor([[0, 0, 1], [1, 1, 0], [0, 2, 2], [-1, 0, 1], [1, -1, -1]])
    assert majority_vote(labels, torch.zeros(5, 3)).labels.tolist() == [0, 1, 2, 0, 1]
    headroom = Headroom()
    assert float(headroom(labels, truth)) == pytest.approx((4 - 2) / 5)
    for guard, expected in (([0, 0, 0, 0, 1], 1.0), ([0, 0, 2, 0, 1], 0.5), ([-1, 1, 2, 0, 1], -0.5)):
        assert float(RescueShare()(labels, truth, torch.tensor(guard))) == expected


def test_counts_are_divided_not_shares_averaged() -> None:
    share = RescueShare()
    truth = torch.zeros(3, dtype=torch.int64)
    share.update(torch.tensor([[1, 1, 0]] * 3), truth, torch.tensor([0, 0, 0]))
    share.update(torch.tensor([[1, 1, 0]]), truth[:1], torch.tensor([1]))
    assert float(share.compute()) == 3 / 4


def test_without_headroom_the_rescue_share_is_undefined() -> None:
    labels, truth = torch.zeros(4, 3, dtype=torch.int64), torch.tensor([0, 0, 1, 1])
    assert float(Headroom()(labels, truth)) == 0
    assert RescueShare()(labels, truth, truth * 0).isnan()
    assert RescueShare()(labels, truth, truth * 0 + 2).isnan()


@pytest.mark.parametrize(
    ("failure", "wrong", "message"),
    [
        (torch.zeros(2), torch.zeros(2), "wrong must be bool"),
        (torch.zeros(3), torch.zeros(2, dtype=torch.bool), r"must be \(2,\) like wrong, got \(3,\)"),
        (torch.tensor([0.5, torch.nan]), torch.zeros(2, dtype=torch.bool), r"in \[0, 1\], got nan"),
        (torch.tensor([0.5, 1.5]), torch.zeros(2, dtype=torch.bool), r"in \[0, 1\], got 1.5"),
    ],
)
def test_a_batch_that_cannot_be_measured_leaves_no_trace(failure: Tensor, wrong: Tensor, message: str) -> None:
    good, outcome = _case(7)
    metric = AURC()
    metric.update(good, outcome)
    with pytest.raises(DataFormatError, match=message):
        metric.update(failure, wrong)
    assert float(metric.compute()) == area_under_risk_coverage(good, outcome)


def test_answers_that_cannot_be_counted_leave_no_trace() -> None:
    labels, truth, _ = _answers()
    share, headroom = RescueShare(), Headroom()
    share.update(labels, truth, labels[:, 0])
    before = float(share.compute())
    with pytest.raises(DataFormatError, match="the guard's labels must be"):
        share.update(labels, truth, labels)
    with pytest.raises(DataFormatError, match=r"truth must be int64 \(200,\)"):
        share.update(labels, truth[:5], truth[:5])
    assert float(share.compute()) == before
    with pytest.raises(DataFormatError, match="true labels must be >= 0"):
        headroom.update(labels, truth - 1)
    with pytest.raises(DataFormatError, match="labels must be int64"):
        headroom.update(labels.int(), truth)
    with pytest.raises(DataFormatError, match=r"\(B, N\) with N >= 1"):
        headroom.update(labels[:, 0], truth)


@pytest.mark.parametrize("share", [-0.1, 95.0, float("nan")])
def test_settings_that_are_no_shares_are_refused_at_once(share: float) -> None:
    with pytest.raises(ConfigurationError, match="recall must be in"):
        FPR95(recall=share)
    with pytest.raises(ConfigurationError, match="risk must be in"):
        CoverageAtRisk(risk=share)


# Two processes see some of the batches each, or none, and must both compute the measures of all.
PROCESSES = """
import json, sys, warnings
import torch
from deepfailguard.evaluation.metrics import AUGRC, AURC, FPR95, CoverageAtRisk, RescueShare

def measure(rank):
    torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=rank, world_size=2)
    warnings.simplefilter("ignore")  # torchmetrics warns of a process that was given nothing
    p = torch.tensor([0.1, 0.4, 0.4, 0.4, 0.7, 0.9])
    wrong = torch.tensor([False, True, False, False, True, True])
    truth = torch.zeros(6, dtype=torch.int64)
    labels = torch.tensor([[0, 0, 1], [1, 1, 0], [0, 2, 2], [0, 0, 1], [1, -1, -1], [0, 1, 1]])
    values = []
    for shares in ([[0, 3], [1, 2, 4, 5]], [[0, 1, 2, 3, 4, 5], []], [[], []]):
        metrics, rescue = [AURC(), AUGRC(), FPR95(), CoverageAtRisk(risk=0.4)], RescueShare()
        for index in shares[rank]:
            for metric in metrics:
                metric.update(p[[index]], wrong[[index]])
            rescue.update(labels[[index]], truth[[index]], labels[[index], 0])
        values.append([float(metric.compute()) for metric in [*metrics, rescue]])
    torch.distributed.destroy_process_group()
    return values

print(json.dumps(measure(int(sys.argv[2]))))
"""


def test_processes_compute_the_measures_of_all_of_their_inputs(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROCESSES, str(tmp_path / "meeting")]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo"}
    told: Any = {"cwd": ROOT, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen([*command, rank], **told) for rank in ("0", "1")]
    try:
        said = [process.communicate(timeout=240) for process in both]
    finally:
        for process in both:  # where one failed, the other waits for it
            process.kill()
    assert [process.returncode for process in both] == [0, 0], said
    p = torch.tensor([0.1, 0.4, 0.4, 0.4, 0.7, 0.9])
    wrong = torch.tensor([False, True, False, False, True, True])
    expected = [
        area_under_risk_coverage(p, wrong),
        area_under_generalised_risk_coverage(p, wrong),
        false_positive_rate(p, wrong),
        coverage_at_risk(p, wrong, risk=0.4),
        2 / 3,  # majority right twice, guard right four times, oracle right five times
    ]
    for split, lopsided, nothing in (json.loads(output) for output, _ in said):
        assert split == lopsided == expected
        assert all(math.isnan(value) for value in nothing)
