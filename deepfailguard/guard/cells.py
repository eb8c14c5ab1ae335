"""Cells among calibration values, at ranks that depend on their number alone."""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

__all__ = ["Cells", "fit_cells"]

_LOWER_EDGES: Final = (0.01, 0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)


@dataclass(frozen=True, slots=True)
class Cells:
    """K cells among the calibration values of M statistics.

    Attributes:
        edges: (M, K - 1) float64, calibration values at fixed ranks, ascending.
        ties: (M, K - 1) float64 in [0, 1), the random numbers that order an edge among equal values.
        gaps: (K,) float64 >= 1, gaps between calibration values in each cell; they sum to n + 1.
    """

    edges: Tensor
    ties: Tensor
    gaps: Tensor

    def of(self, values: Tensor, ties: Tensor) -> Tensor:
        """Cells (B, M) int64 in [0, K) of values (B, M) float64 without NaN and their random numbers."""
        values, ties = values[:, :, None], ties[:, :, None]
        return ((values > self.edges) | ((values == self.edges) & (ties > self.ties))).sum(2)

    def with_rows(self, which: Tensor, rows: "Cells") -> "Cells":
        """These cells, but for some statistics, (M,) bool, those of other calibration values of the same number."""
        edges, ties = self.edges.clone(), self.ties.clone()
        edges[which], ties[which] = rows.edges, rows.ties
        return Cells(edges, ties, self.gaps)


def fit_cells(values: Tensor, ties: Tensor) -> Cells:
    """Cut the calibration values (n, M) float64 without NaN, n >= 2, into cells at ranks that depend on n alone.

    The outermost cells hold what lies beyond all calibration values. Edges at values of one's choice, say where
    a tie ends, would give more power and break the exactness.

    Args:
        values: (n, M) float64.
        ties: (n, M) float64 in [0, 1), random numbers.
    """
    n = len(values)
    order = ties.argsort(0)
    order = order.gather(0, values.gather(0, order).argsort(dim=0, stable=True))
    ranks = _edge_ranks(n)
    gaps = torch.tensor([*ranks, n + 1], dtype=torch.float64).diff(prepend=torch.zeros(1, dtype=torch.float64))
    chosen = order[torch.tensor(ranks) - 1]
    return Cells(values.gather(0, chosen).T.contiguous(), ties.gather(0, chosen).T.contiguous(), gaps)


def _edge_ranks(n: int) -> list[int]:
    """Ranks in [1, n] of the calibration values that are edges, symmetric up to rounding."""
    lower = {max(1, round(share * (n + 1))) for share in _LOWER_EDGES} | {1}
    return sorted({min(rank, n) for rank in lower | {n + 1 - rank for rank in lower}})
