import torch

from deepfailguard.predictor.checks import check_calibration, count_answers
from deepfailguard.types import Evidence


def test_only_an_answer_that_is_the_true_class_is_right() -> None:
    labels = torch.tensor([[2, 1, -1], [0, 0, -1], [7, -1, 2]])
    evidence = Evidence(labels, torch.ones(3, 3), torch.ones(3, 3, dtype=torch.bool))
    correct = check_calibration(evidence, torch.tensor([2, 0, 7]))
    assert correct.tolist() == [[True, False, False], [True, True, False], [True, False, False]]
    counts = count_answers(evidence, correct)
    assert counts.right.tolist() == [3, 1, 0]
    assert counts.wrong.tolist() == [0, 1, 1]


def test_what_was_not_answered_is_not_counted_whatever_is_said_of_it() -> None:
    evidence = Evidence(torch.tensor([[0], [-1], [-1]]), torch.ones(3, 1), torch.ones(3, 1, dtype=torch.bool))
    counts = count_answers(evidence, torch.tensor([[True], [True], [False]]))
    assert (counts.right.tolist(), counts.wrong.tolist()) == ([1], [0])


def test_a_true_class_that_no_version_ever_answered_makes_every_answer_wrong() -> None:
    evidence = Evidence(torch.tensor([[0, 1]]), torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool))
    assert check_calibration(evidence, torch.tensor([99])).tolist() == [[False, False]]
