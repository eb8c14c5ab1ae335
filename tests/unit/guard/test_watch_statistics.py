"""What is watched: scores of versions' answers, and how they are put side by side."""

import pytest
import torch

from deepfailguard.errors import ConfigurationError
from deepfailguard.guard.cells import fit_cells
from deepfailguard.guard.sequential import advance, held, start_bets
from deepfailguard.guard.statistics import SCORES, scores_of, statistics_of, usable_scores
from deepfailguard.seeding import generator
from deepfailguard.types import Evidence

EVIDENCE = Evidence(
    labels=torch.tensor([[0, 1], [1, -1]]),
    distance=torch.tensor([[0.5, 0.25], [1.0, 2.0]]),
    found=torch.tensor([[True, False], [True, False]]),
    logits=torch.tensor([[[1.0, 0.0], [0.0, 3.0]], [[0.0, 2.0], [0.0, 0.0]]]),
    features=(torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.tensor([[5.0, 12.0, 0.0], [0.0, 0.0, 0.0]])),
    stability=torch.tensor([[0.75, torch.nan], [0.5, 0.0]]),
)


def test_scores_equal_their_formulas() -> None:
    told = scores_of(EVIDENCE, list(SCORES))
    one, three = torch.tensor([1.0, 3.0], dtype=torch.float64).exp()
    torch.testing.assert_close(told["confidence"][0], torch.stack([one / (1 + one), three / (1 + three)]))
    assert told["largest logit"][0].tolist() == [1.0, 3.0]
    torch.testing.assert_close(told["logsumexp"][0], torch.stack([(1 + one).log(), (1 + three).log()]))
    assert told["feature size"].tolist() == [[5.0, 13.0], [1.0, 0.0]]
    torch.testing.assert_close(told["stability"], EVIDENCE.stability, check_dtype=False, equal_nan=True)
    assert told["distance"].tolist() == [[0.5, torch.inf], [1.0, torch.inf]]


def test_scores_of_large_numbers_are_not_infinite_by_rounding() -> None:
    huge = Evidence(*(getattr(EVIDENCE, name) for name in ("labels", "distance", "found", "logits")), None)
    assert huge.logits is not None
    huge = Evidence(huge.labels, huge.distance, huge.found, huge.logits * 1e37, (torch.full((2, 2), 1e38),) * 2)
    names = usable_scores(huge)
    assert set(SCORES) - set(names) == {"stability"}
    assert all(told.isfinite().all() for name, told in scores_of(huge, names).items() if name != "distance")


def test_only_what_the_evidence_holds_can_be_scored() -> None:
    bare = Evidence(EVIDENCE.labels, EVIDENCE.distance, EVIDENCE.found)
    assert usable_scores(bare) == ("distance",)
    assert usable_scores(Evidence(bare.labels, bare.distance, torch.zeros_like(bare.found))) == ()
    assert usable_scores(EVIDENCE) == tuple(SCORES)
    with pytest.raises(ConfigurationError, match=r"scores \['logsumexp', 'mood'\] cannot be had .* \['distance'\]"):
        scores_of(bare, ["distance", "logsumexp", "mood"])


def test_statistics_of_a_version_that_is_left_out_count_for_nobody() -> None:
    labels = torch.tensor([[0, 1, 1], [0, 0, 1]])
    whole = statistics_of(labels, {}, ())
    assert whole.tolist() == [[1, 0, 0], [0, 0, 1]]
    some = statistics_of(labels, {}, (), torch.tensor([True, True, False]))
    assert some.tolist() == [[1, 1, torch.inf], [0, 0, torch.inf]]


def test_held_statistics_stay_as_they_were() -> None:
    random = generator(0, "held")
    values, ties = torch.rand(2, 300, 3, dtype=torch.float64, generator=random)
    cells = fit_cells(values, ties)
    before = start_bets(cells.gaps, 3)
    after, _ = advance(before, cells.of(values[:100] + 1, ties[:100]))
    which = torch.tensor([False, True, False])
    kept = held(after, before, which)
    assert kept.inputs == 100
    for name in ("counts", "usual", "earlier", "log_sum", "height", "start"):
        assert torch.equal(getattr(kept, name)[1], getattr(before, name)[1])
        assert torch.equal(getattr(kept, name)[[0, 2]], getattr(after, name)[[0, 2]])
    assert torch.equal(kept.lately[:, 1], before.lately[:, 1])
    assert torch.equal(kept.lately[:, 0], after.lately[:, 0])
