"""Gradient-boosted trees as tensors: learned by scikit-learn, asked without it."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor
from torch.nn.functional import pad, softplus

from deepfailguard.seeding import derive_seed

if TYPE_CHECKING:
    from sklearn.ensemble import GradientBoostingClassifier

__all__ = ["Trees", "fit_trees", "trees_of"]

_MOST: Final = 300
_STRIDE: Final = 25  # trees that are tried at once
_DEPTH: Final = 2
_RATE: Final = 0.05
_SHARE: Final = 0.5  # of the answers that each tree sees
_IN_A_LEAF: Final = 10
_OF_TREES: Final = ("feature", "threshold", "left", "right", "value")
_AT_ONCE: Final = 1 << 21  # inputs times trees in memory at once


@dataclass(frozen=True, slots=True)
class Trees:
    """T regression trees of at most M nodes, the root first; their sum and the offset are log odds.

    An input goes left where its column, rounded to float32 as scikit-learn does, is at most the threshold. A leaf is
    its own left and right.

    Attributes:
        feature: (T, M) int64, the column that a node asks for.
        threshold: (T, M) float64.
        left: (T, M) int64, a node's number.
        right: (T, M) int64.
        value: (T, M) float64, of a leaf, already shrunk.
        offset: () float64, what is said without trees.
    """

    feature: Tensor
    threshold: Tensor
    left: Tensor
    right: Tensor
    value: Tensor
    offset: Tensor

    def __call__(self, columns: Tensor) -> Tensor:
        """Log odds (B,) float64 of columns (B, F) float64."""
        rounded = columns.float().double()
        pieces = rounded.split(max(1, _AT_ONCE // max(1, len(self.value))))
        return torch.cat([self._summed(piece)[:, -1] for piece in pieces])

    def stages(self, columns: Tensor) -> Tensor:
        """Log odds by the first 0, 1, ... T trees, (B, T + 1) float64."""
        return self._summed(columns.float().double())

    def first(self, count: int) -> "Trees":
        """The first trees only."""
        return replace(self, **{name: getattr(self, name)[:count] for name in _OF_TREES})

    def _summed(self, columns: Tensor) -> Tensor:
        trees, nodes = self.feature.shape
        each, at = torch.arange(trees), torch.zeros(len(columns), trees, dtype=torch.int64)
        for _ in range(nodes // 2):  # no path is longer: every split has two nodes below it
            low = columns.gather(1, self.feature[each, at]) <= self.threshold[each, at]
            at = torch.where(low, self.left[each, at], self.right[each, at])
        said = torch.cat([self.offset.expand(len(columns), 1), self.value[each, at]], 1)
        return said.cumsum(1)  # one after the other, as scikit-learn adds: the same bits, alone and among others


def fit_trees(columns: Tensor, wrong: Tensor, fold: Tensor) -> tuple[Trees, Tensor]:
    """Boosted trees (Friedman, 2001), as many as cross-validation bears out, perhaps none.

    Args:
        columns: (n, F) float64.
        wrong: (n,) bool.
        fold: (n,) int64, the fold of each; right and wrong answers are in all of them.

    Returns:
        The trees, and log odds (n,) float64 by as many trees that did not see the answer's fold.
    """
    models = [_untrained() for _ in range(int(fold.max()) + 1)]
    for most in range(_STRIDE, _MOST + 1, _STRIDE):
        held_out = torch.empty(len(wrong), most + 1, dtype=torch.float64)
        for number, model in enumerate(models):
            out = fold == number
            held_out[out] = _grown(model, columns[~out], wrong[~out], most).stages(columns[out])
        loss = (softplus(held_out) - wrong.double()[:, None] * held_out).mean(0)
        count = int(loss.argmin())
        if count <= most - _STRIDE:  # the last ones were of no use
            break
    return _grown(_untrained(), columns, wrong, max(1, count)).first(count), held_out[:, count].clone()


def trees_of(model: "GradientBoostingClassifier") -> Trees:
    """The trees of a fitted scikit-learn model of two classes that starts from their shares; the same bits."""
    from scipy.special import logit  # not torch's: the last bit differs

    trees = [_tree(estimator.tree_, model.learning_rate) for estimator in model.estimators_[:, 0]]
    most = max(len(tree["value"]) for tree in trees)
    parts = {name: torch.stack([pad(tree[name], (0, most - len(tree[name]))) for tree in trees]) for name in trees[0]}
    return Trees(**parts, offset=torch.tensor(float(logit(model.init_.class_prior_[1])), dtype=torch.float64))


def _tree(tree: Any, rate: float) -> dict[str, Tensor]:
    """One tree of scikit-learn's, (M,) each, by the names of `Trees`."""
    own = torch.arange(tree.node_count)
    leaf = torch.from_numpy(tree.children_left == tree.children_right)
    return {
        "feature": torch.where(leaf, 0, torch.from_numpy(tree.feature)),
        "threshold": torch.from_numpy(tree.threshold).clone(),
        "left": torch.where(leaf, own, torch.from_numpy(tree.children_left)),
        "right": torch.where(leaf, own, torch.from_numpy(tree.children_right)),
        "value": torch.from_numpy(tree.value[:, 0, 0] * rate),
    }


def _untrained() -> "GradientBoostingClassifier":
    from sklearn.ensemble import GradientBoostingClassifier  # heavy: only who fits pays for it

    return GradientBoostingClassifier(
        max_depth=_DEPTH,
        learning_rate=_RATE,
        subsample=_SHARE,
        min_samples_leaf=_IN_A_LEAF,
        random_state=derive_seed(0, "trees"),
        warm_start=True,
    )


def _grown(model: "GradientBoostingClassifier", columns: Tensor, wrong: Tensor, count: int) -> Trees:
    """Train on, up to so many trees: the same ones as at once."""
    return trees_of(model.set_params(n_estimators=count).fit(columns.numpy(), wrong.numpy()))
