import pytest
import torch

from deepfailguard.decision.classes import most_probable_class
from deepfailguard.errors import ConfigurationError

LABELS = torch.tensor([[0, 1], [2, 2], [0, 0], [-1, 1], [-1, -1]])
FAILURE = torch.tensor([[0.8, 0.3], [0.1, 0.1], [0.9, 0.9], [1.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
TOLD = torch.tensor(
    [[0.2, 0.7, 0.1], [0.05, 0.05, 0.9], [0.1, 0.8, 0.1], [0.2, 0.5, 0.3], [0.4, 0.3, 0.3]], dtype=torch.float64
)


def test_the_answer_may_be_one_that_no_version_gave() -> None:
    decision = most_probable_class(LABELS, FAILURE, class_probability=TOLD)
    assert decision.labels.tolist() == [1, 2, 1, 1, -1]
    torch.testing.assert_close(
        decision.failure_probability, torch.tensor([0.3, 0.1, 0.2, 0.5, 1.0], dtype=torch.float64)
    )
    assert decision.weights.tolist() == [[0, 1], [0.5, 0.5], [0.5, 0.5], [0, 1], [0, 0]]
    assert decision.abstained.tolist() == [False, False, False, False, True]


def test_it_abstains_where_the_class_is_too_uncertain() -> None:
    decision = most_probable_class(LABELS, FAILURE, class_probability=TOLD, abstain_above=0.35)
    assert decision.abstained.tolist() == [False, False, False, True, True]
    with pytest.raises(ConfigurationError, match="abstain_above"):
        most_probable_class(LABELS, FAILURE, class_probability=TOLD, abstain_above=1.5)


def test_probabilities_that_are_not_numbers_are_never_chosen() -> None:
    told = TOLD.clone()
    told[0, 1] = torch.nan
    assert int(most_probable_class(LABELS, FAILURE, class_probability=told).labels[0]) == 0


def test_class_probabilities_of_other_inputs_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"must be \(5, K\)"):
        most_probable_class(LABELS, FAILURE, class_probability=TOLD[:3])


def test_an_empty_batch() -> None:
    decision = most_probable_class(LABELS[:0], FAILURE[:0], class_probability=TOLD[:0])
    assert decision.labels.shape == (0,)
