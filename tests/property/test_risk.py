import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deepfailguard.decision.prediction_sets import SetScore, adaptive_score, calibrate_sets, least_ambiguous_score
from deepfailguard.decision.risk import ANSWER_NOTHING, bound_risk

RISKS = st.sampled_from([0.05, 0.2, 0.4])


@st.composite
def calibration(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Failure probabilities with many ties or few, and answers that are wrong more often where they are high."""
    size, distinct = draw(st.integers(1, 120)), draw(st.sampled_from([1, 3, 128]))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    failure = (torch.rand(size, generator=random, dtype=torch.float64) * distinct).floor() / distinct
    wrong = torch.rand(size, generator=random, dtype=torch.float64) < failure * draw(st.floats(0, 1))
    return failure, wrong


@given(case=calibration(), risk=RISKS)
@settings(deadline=None, max_examples=100, derandomize=True, database=None)
def test_a_bound_says_what_its_threshold_does(case: tuple[Tensor, Tensor], risk: float) -> None:
    failure, wrong = case
    bound = bound_risk(failure, wrong, risk=risk, confidence=0.8)
    given_ = failure <= bound.threshold
    assert (bound.inputs, bound.answered, bound.errors) == (len(wrong), int(given_.sum()), int((given_ & wrong).sum()))
    if bound.guaranteed:
        assert bound.errors / bound.answered <= bound.error_bound <= risk + 1e-12
        assert bound.inputs >= bound.least_inputs
    else:
        assert bound.threshold == ANSWER_NOTHING


@given(case=calibration(), risk=RISKS, data=st.data())
@settings(deadline=None, max_examples=60, derandomize=True, database=None)
def test_the_order_of_inputs_does_not_matter(case: tuple[Tensor, Tensor], risk: float, data: st.DataObject) -> None:
    failure, wrong = case
    order = data.draw(st.permutations(range(len(wrong))))
    assert bound_risk(failure[order], wrong[order], risk=risk) == bound_risk(failure, wrong, risk=risk)


@given(case=calibration(), risk=RISKS)
@settings(deadline=None, max_examples=60, derandomize=True, database=None)
def test_only_the_order_of_failure_probabilities_matters(case: tuple[Tensor, Tensor], risk: float) -> None:
    failure, wrong = case
    bound = bound_risk(failure, wrong, risk=risk, confidence=0.8)
    squeezed = bound_risk(failure / 1024 + 0.5, wrong, risk=risk, confidence=0.8)
    assert (squeezed.answered, squeezed.errors) == (bound.answered, bound.errors)
    if bound.guaranteed:
        assert squeezed.threshold == bound.threshold / 1024 + 0.5


@given(case=calibration(), risk=RISKS, data=st.data())
@settings(deadline=None, max_examples=60, derandomize=True, database=None)
def test_fewer_wrong_answers_never_lower_the_coverage(
    case: tuple[Tensor, Tensor], risk: float, data: st.DataObject
) -> None:
    failure, wrong = case
    repaired = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(wrong), max_size=len(wrong))))
    before = bound_risk(failure, wrong, risk=risk, confidence=0.8)
    assert bound_risk(failure, wrong & ~repaired, risk=risk, confidence=0.8).threshold >= before.threshold


@st.composite
def classified(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    size, classes = draw(st.integers(1, 60)), draw(st.integers(1, 6))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    logits = (3 * torch.randn(size, classes, generator=random, dtype=torch.float64)).round()  # with ties
    return logits.softmax(1), torch.randint(classes, (size,), generator=random)


@pytest.mark.parametrize("score", [least_ambiguous_score, adaptive_score])
@pytest.mark.parametrize("by_class", [False, True])
@given(case=classified(), rates=st.tuples(st.floats(0.01, 0.99), st.floats(0.01, 0.99)))
@settings(deadline=None, max_examples=60, derandomize=True, database=None)
def test_sets_keep_their_promise_where_they_were_calibrated(
    score: SetScore, by_class: bool, case: tuple[Tensor, Tensor], rates: tuple[float, float]
) -> None:
    probabilities, truth = case
    low, high = sorted(rates)
    narrow = calibrate_sets(probabilities, truth, high, score=score, by_class=by_class)(probabilities)
    wide = calibrate_sets(probabilities, truth, low, score=score, by_class=by_class)(probabilities)
    strict = calibrate_sets(probabilities, truth, high, score=score, by_class=by_class, allow_empty=True)
    assert (strict(probabilities) <= wide).all()
    assert narrow.any(1).all()
    if not by_class:  # with cutoffs of their own, a class may be stranger for itself than a less probable one
        assert narrow.gather(1, probabilities.argmax(1, keepdim=True)).all()
    inside = narrow[torch.arange(len(truth)), truth].double()
    groups = [truth == k for k in truth.unique()] if by_class else [torch.ones_like(truth, dtype=torch.bool)]
    for group in groups:
        assert float(inside[group].mean()) >= 1 - high - 1e-9


@given(case=classified(), rate=st.floats(0.01, 0.99), data=st.data())
@settings(deadline=None, max_examples=60, derandomize=True, database=None)
def test_sets_do_not_depend_on_the_numbering_of_classes(
    case: tuple[Tensor, Tensor], rate: float, data: st.DataObject
) -> None:
    probabilities, truth = case
    order = torch.tensor(data.draw(st.permutations(range(probabilities.shape[1]))))
    renumbered = calibrate_sets(probabilities[:, order], order.argsort()[truth], rate)(probabilities[:, order])
    assert torch.equal(renumbered, calibrate_sets(probabilities, truth, rate)(probabilities)[:, order])
