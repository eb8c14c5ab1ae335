import pytest
import torch
from sklearn.ensemble import GradientBoostingClassifier
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from deepfailguard.predictor.trees import Trees, fit_trees, trees_of


def _answers(count: int, purpose: int = 0) -> tuple[Tensor, Tensor]:
    """Columns of which two say something only together."""
    random = torch.Generator().manual_seed(purpose)
    columns = torch.randn(count, 6, generator=random).double()
    log_odds = 3 * columns[:, 0].sign() * columns[:, 1].sign() - 1
    return columns, torch.rand(count, generator=random) < log_odds.sigmoid()


def _sklearns(depth: int, trees: int = 40) -> GradientBoostingClassifier:
    columns, wrong = _answers(300)
    model = GradientBoostingClassifier(n_estimators=trees, max_depth=depth, subsample=0.5, random_state=0)
    return model.fit(columns.numpy(), wrong.numpy())


@pytest.mark.parametrize("depth", [1, 2, 3, 6])
def test_it_is_scikit_learns_to_the_bit(depth: int) -> None:
    model, (asked, _) = _sklearns(depth), _answers(500, purpose=1)
    expected = torch.from_numpy(model.decision_function(asked.numpy()))
    assert torch.equal(trees_of(model)(asked), expected)
    assert torch.equal(torch.cat([trees_of(model)(row) for row in asked.split(1)]), expected)  # alone and among others
    assert trees_of(model)(asked[:0]).shape == (0,)


def test_many_inputs_are_asked_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    trees, (asked, _) = trees_of(_sklearns(2)), _answers(100, purpose=1)
    whole = trees(asked)
    monkeypatch.setattr("deepfailguard.predictor.trees._AT_ONCE", 7 * 40)
    assert torch.equal(trees(asked), whole)


def test_thresholds_are_compared_as_scikit_learn_does() -> None:
    """It rounds inputs to float32, so that what is hardly over a threshold may be on its other side."""
    model = _sklearns(3)
    trees = trees_of(model)
    near = trees.threshold[:, 0][:, None] * (1 + torch.arange(-4, 5) * 2e-8)
    asked = near.reshape(-1, 1).expand(-1, 6).contiguous()
    assert torch.equal(trees(asked), torch.from_numpy(model.decision_function(asked.numpy())))


def test_stages_are_scikit_learns() -> None:
    model, (asked, _) = _sklearns(2), _answers(50, purpose=1)
    stages = trees_of(model).stages(asked)
    expected = [torch.from_numpy(stage[:, 0]) for stage in model.staged_decision_function(asked.numpy())]
    assert torch.equal(stages[:, 1:], torch.stack(expected, 1))
    for count in (0, 1, 17):
        assert torch.equal(trees_of(model).first(count)(asked), stages[:, count])


def _fitted(columns: Tensor, wrong: Tensor) -> tuple[Trees, Tensor]:
    return fit_trees(columns, wrong, torch.arange(len(wrong)) % 5)


def test_it_sees_what_columns_say_together() -> None:
    (columns, wrong), (asked, truth) = _answers(1500), _answers(3000, purpose=1)
    trees, held_out = _fitted(columns, wrong)
    share = wrong.double().mean().logit().expand(len(asked))
    best = binary_cross_entropy_with_logits(3 * asked[:, 0].sign() * asked[:, 1].sign() - 1, truth.double())
    loss, blind = (binary_cross_entropy_with_logits(said, truth.double()) for said in (trees(asked), share))
    assert loss < best + 0.3 * (blind - best)
    honest = (softplus(held_out) - wrong * held_out).mean()
    assert abs(float(honest - loss)) < 0.03  # what was held out tells how well it does


def test_where_columns_say_nothing_it_says_next_to_nothing() -> None:
    random = torch.Generator().manual_seed(0)
    columns, wrong = torch.randn(120, 6, generator=random).double(), torch.rand(120, generator=random) < 0.2
    trees, held_out = _fitted(columns, wrong)
    assert float((trees(columns).sigmoid() - wrong.double().mean()).abs().mean()) < 0.05
    assert held_out.shape == (120,)


def test_the_same_answers_make_the_same_trees() -> None:
    (columns, wrong), (asked, _) = _answers(200), _answers(50, purpose=1)
    assert torch.equal(_fitted(columns, wrong)[0](asked), _fitted(columns, wrong)[0](asked))


def test_columns_without_a_split_are_the_share_of_wrong_answers() -> None:
    wrong = torch.arange(100) < 30
    trees, _ = _fitted(torch.ones(100, 2).double(), wrong[torch.randperm(100, generator=torch.Generator())])
    assert float(trees(torch.zeros(1, 2).double()).sigmoid()) == pytest.approx(0.3, abs=0.03)
