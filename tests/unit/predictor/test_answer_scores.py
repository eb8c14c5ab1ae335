import pytest
import torch
from torch.testing import assert_close

from deepfailguard.errors import DataFormatError
from deepfailguard.predictor.answer_scores import FEATURE_SCORES, SCORES, logit_scores, score_columns
from deepfailguard.predictor.class_posterior import CalibratedSoftmax
from deepfailguard.predictor.joint.opinions import fit_voice
from deepfailguard.types import Evidence
from tests.unit.predictor.simulated_logits import evidence_of, simulated

FROM_LOGITS = ["confidence", "margin", "gap", "entropy", "energy"]


def test_formulas() -> None:
    z = torch.randn(200, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    p, top = z.softmax(1), z.softmax(1).sort(1, descending=True).values
    margin = top[:, 0] - top[:, 1]
    scores = logit_scores(z)
    assert_close(scores["confidence"], torch.logit(top[:, 0]))
    assert_close(scores["margin"], ((1 + margin) / (1 - margin)).log())
    assert_close(scores["gap"], (top[:, 0] / top[:, 1]).log())
    assert_close(scores["entropy"], -(-(p * p.log()).sum(1)).log())
    assert_close(scores["energy"], z.exp().sum(1).log())


def test_order_is_kept_where_the_softmax_is_crowded_at_one() -> None:
    z = torch.zeros(40, 3, dtype=torch.float64)
    z[:, 0] = torch.linspace(1, 300, 40)
    assert z.softmax(1)[:, 0].unique().numel() < 10  # the softmax itself cannot tell them apart
    for name in ("confidence", "margin", "gap", "energy"):
        assert (logit_scores(z)[name].diff() > 0).all(), name
        assert logit_scores(z)[name].isfinite().all()


def test_one_class_tells_nothing() -> None:
    evidence = evidence_of(torch.randn(4, 1, 1))
    assert evidence.logits is not None
    assert score_columns(FROM_LOGITS, evidence, 0, evidence.logits[:, 0].double()).isnan().all()


def test_logits_that_are_not_finite_tell_nothing() -> None:
    """Such answers are scaled to zeros, which would look like a version that finds all classes equally probable."""
    evidence, truth = simulated(200, (2.0,))
    softmax = CalibratedSoftmax.fit(evidence, truth)
    assert evidence.logits is not None
    evidence.logits[3, 0, 1] = torch.nan
    evidence.labels[5, 0] = -1
    columns = score_columns(FROM_LOGITS, evidence, 0, softmax.scaled(evidence)[:, 0])
    assert columns[[3, 5]].isnan().all()
    assert columns[[2, 4]].isfinite().all()


def test_distances() -> None:
    labels = torch.tensor([[0], [0], [0], [0], [-1]])
    size = torch.tensor([[4.0], [9.0], [torch.inf], [torch.nan], [1.0]])
    found = torch.tensor([[True], [False], [True], [True], [True]])
    columns = score_columns(["distance"], Evidence(labels, size, found), 0, torch.zeros(5, 2))
    assert_close(columns.flatten(), torch.tensor([2.0, *[torch.nan] * 4], dtype=torch.float64), equal_nan=True)


def test_stability() -> None:
    labels = torch.tensor([[0]] * 6 + [[-1]])
    told = torch.tensor([[0.5], [0.9], [1.0], [0.0], [1 - 1e-7], [torch.nan], [0.0]])
    nothing = torch.zeros(7, 1)
    evidence = Evidence(labels, nothing, nothing.bool(), stability=told)
    columns = score_columns(["stability"], evidence, 0, torch.zeros(7, 2)).flatten()
    assert_close(columns[:2], torch.tensor([0.0, 9.0], dtype=torch.float64).log().clamp_min(0), rtol=1e-6, atol=0)
    assert columns[[2, 3]].tolist() == pytest.approx([16.6355, -16.6355], abs=1e-3)
    assert columns[4] < columns[2]  # what can be told from certainty is told
    assert columns[[5, 6]].isnan().all()


def test_stability_that_nobody_asked_for_is_missed() -> None:
    with pytest.raises(DataFormatError, match="need evidence with stability; ask the versions for it"):
        score_columns(["stability"], evidence_of(torch.randn(4, 1, 2)), 0, torch.zeros(4, 2))


def test_features() -> None:
    evidence, truth = simulated(300, (3.0,))
    assert evidence.features is not None
    fold = torch.arange(300) % 3
    voice, _ = fit_voice(torch.zeros(300, 4), evidence.features[0], truth, 4, fold, folds=3)
    assert voice.head is not None
    evidence.features[0][7, 2] = torch.nan
    columns = score_columns(["typicality", "second_opinion"], evidence, 0, torch.zeros(300, 4), voice)
    assert columns[7].isnan().all()
    rest = torch.arange(300) != 7
    said, distance = voice.head(evidence.features[0][rest])
    right = (said * voice.head_sharpness).softmax(1).gather(1, evidence.labels[rest]).squeeze(1)
    assert_close(columns[rest, 0], -(distance / voice.usual).log())
    assert_close(columns[rest, 1], torch.logit(right))


@pytest.mark.parametrize("features", [None, (torch.zeros(20, 9),)])
def test_features_that_are_not_there_or_do_not_fit(features: tuple[torch.Tensor] | None) -> None:
    evidence = evidence_of(torch.randn(20, 1, 4), features)
    assert score_columns(sorted(FEATURE_SCORES), evidence, 0, torch.zeros(20, 4)).isnan().all()


def test_all_scores_are_higher_for_right_answers() -> None:
    evidence, truth = simulated(2000, (2.0,))
    assert evidence.features is not None
    assert evidence.logits is not None
    voice, _ = fit_voice(evidence.logits[:, 0], evidence.features[0], truth, 4, torch.arange(2000) % 3, folds=3)
    wanted = [name for name in SCORES if name not in {"distance", "typicality", "stability"}]
    columns = score_columns(wanted, evidence, 0, evidence.logits[:, 0].double(), voice)
    right = evidence.labels[:, 0] == truth
    assert (columns[right].mean(0) > columns[~right].mean(0)).all()
