"""Noticing that a stream of numbers is no longer what it was: bets that nobody can win while nothing changes.

How M statistics are watched, each on its own, whatever their distributions:

1. A value is placed among the n calibration values. Ties are broken by random numbers, so that before any value
   of service came each of the n + 1 gaps is equally probable; the gaps are joined to K `Cells`.
2. While values of calibration and service are exchangeable, the next one falls into a cell with probability
   (gaps of the cell + values of service in it) / (n + 1 + values of service), given the cells of those before it:
   Pólya's urn. This is exact for every n and holds no estimate: it is the online conformal rank (Vovk, Gammerman
   and Shafer, 2005), so that a small calibration set costs power but never false alarms.
3. Each bet names other probabilities q of the cells and multiplies its stake by q / (Pólya's probability), on
   average 1. A new unit is staked before every input: R = (R + 1) q / p (Shiryaev and Roberts; an e-detector of
   Shin, Ramdas and Rinaldo, 2022). R minus the number of inputs is a martingale, hence so is the bets' mean, and

       expected number of times that R reaches c (and starts again from 0) in T inputs <= T / c.

The bound is linear in the statistics: it adds up over dependent ones.
"""

import math
from dataclasses import dataclass, fields, replace
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import one_hot

__all__ = ["BetState", "Paths", "advance", "bet_tensors", "bets_of", "forget", "held", "start_bets", "take_back"]

_BLOCK: Final = 256
_LAG: Final = 2 * _BLOCK
_SHIFTS: Final = (-0.5, 0.5)
_TAILS: Final = (0.02, 0.04, 0.07, 0.1, 0.15, 0.3)
_ODDS: Final = math.log(3.0)
_MEMORIES: Final = (32.0, 256.0)
_CAUTION: Final = (4.0, 16.0)


@dataclass(frozen=True, slots=True)
class BetState:
    """What is known between two inputs of M statistics, K cells and G bets.

    Attributes:
        inputs: inputs of service so far.
        counts: (M, K) float64, Pólya's urn: gaps and values of service per cell.
        usual: (M, K) float64, the urn as it was 512 to 1023 inputs ago: what the bets believe to be the
            distribution before a change that came since.
        earlier: (M, K) float64, the urn at the last multiple of 512 inputs: the next `usual`.
        lately: (2, M, K) float64, values per cell, the older the less they count (memory of 32, of 256 inputs).
        log_sum: (M, G) float64, log R of each bet; -inf before the first input.
        height: (M, G) float64 >= 0, log of a bet's largest gain from one input up to now.
        start: (M, G) int64, that input.
    """

    inputs: int
    counts: Tensor
    usual: Tensor
    earlier: Tensor
    lately: Tensor
    log_sum: Tensor
    height: Tensor
    start: Tensor


@dataclass(frozen=True, slots=True)
class Paths:
    """What each input told.

    Attributes:
        log_evidence: (B, M) float64, log of the bets' mean R after each input.
        since: (B, M) int64, from which input on the best bet would have gained most.
    """

    log_evidence: Tensor
    since: Tensor


def start_bets(gaps: Tensor, statistics: int) -> BetState:
    """The state before the first input, for so many statistics with gaps (K,) per cell."""
    urn = gaps.expand(statistics, -1).clone()
    bets = len(_SHIFTS) + 2 * len(_TAILS) + len(_MEMORIES)
    return BetState(
        inputs=0,
        counts=urn,
        usual=urn,
        earlier=urn,
        lately=torch.zeros(len(_MEMORIES), *urn.shape, dtype=torch.float64),
        log_sum=torch.full((statistics, bets), -torch.inf, dtype=torch.float64),
        height=torch.zeros(statistics, bets, dtype=torch.float64),
        start=torch.zeros(statistics, bets, dtype=torch.int64),
    )


def advance(state: BetState, cells: Tensor) -> tuple[BetState, Paths]:
    """Bet on each of B inputs in their order; the same for whatever batches they come in.

    Args:
        state: before the inputs.
        cells: (B, M) int64 in [0, K), B may be 0.
    """
    evidence, since = [], []
    while len(cells):
        step = min(len(cells), _BLOCK - state.inputs % _BLOCK)
        state, paths = _advance_in_block(state, cells[:step])
        evidence.append(paths.log_evidence)
        since.append(paths.since)
        cells = cells[step:]
    if not evidence:
        return state, Paths(state.log_sum.new_zeros(0, len(state.counts)), state.start.new_zeros(0, len(state.counts)))
    return state, Paths(torch.cat(evidence), torch.cat(since))


def held(state: BetState, before: BetState, which: Tensor) -> BetState:
    """Some statistics, (M,) bool, as they were before: what came was none of theirs."""
    rows = which[:, None]
    return BetState(
        inputs=state.inputs,
        counts=torch.where(rows, before.counts, state.counts),
        usual=torch.where(rows, before.usual, state.usual),
        earlier=torch.where(rows, before.earlier, state.earlier),
        lately=torch.where(rows, before.lately, state.lately),
        log_sum=torch.where(rows, before.log_sum, state.log_sum),
        height=torch.where(rows, before.height, state.height),
        start=torch.where(rows, before.start, state.start),
    )


def take_back(state: BetState, which: Tensor) -> BetState:
    """Take the stakes of some statistics, (M,) bool, back: their evidence begins anew, what they saw is kept."""
    some = which[:, None]
    return replace(
        state,
        log_sum=torch.where(some, -torch.inf, state.log_sum),
        height=torch.where(some, 0.0, state.height),
        start=torch.where(some, state.inputs, state.start),
    )


def forget(state: BetState, which: Tensor, urn: Tensor) -> BetState:
    """Let some statistics, (M,) bool, begin anew with an urn (M, K): (K,) gaps if with nothing but calibration."""
    some = which[:, None]
    return replace(
        take_back(state, which),
        counts=torch.where(some, urn, state.counts),
        usual=torch.where(some, urn, state.usual),
        earlier=torch.where(some, urn, state.earlier),
        lately=torch.where(some, 0.0, state.lately),
    )


def bet_tensors(state: BetState) -> dict[str, Tensor]:
    """The state as named tensors."""
    return {field.name: torch.as_tensor(getattr(state, field.name)) for field in fields(state)}


def bets_of(tensors: dict[str, Tensor]) -> BetState:
    """Take back what `bet_tensors` returned."""
    return BetState(int(tensors["inputs"]), **{name: each for name, each in tensors.items() if name != "inputs"})


def _advance_in_block(state: BetState, cells: Tensor) -> tuple[BetState, Paths]:
    """Inputs of one block, for which all that bets need is known before the first: vectorised over them."""
    hits = one_hot(cells, state.counts.shape[1]).double()
    stakes = torch.cat([_fixed_bets(state.usual, cells), _memory_bets(state, cells, hits)], dim=2)
    gains = stakes - _log_urn(state.counts, cells, hits)[:, :, None]
    total = torch.cat([torch.zeros_like(gains[:1]), gains.cumsum(0)])
    # R after input t is the sum over j <= t of the product of the gains of j..t, and what R was before times all.
    log_sums = total[1:] + torch.logaddexp(state.log_sum, (-total[:-1]).logcumsumexp(0))
    # A bet's gain is largest from the input on before which its total was lowest; position 0 is the one known so far.
    path = torch.cat([torch.zeros_like(gains[:1]), state.height + total[1:]])
    lowest, at = path.cummin(0)
    starts = torch.where(at == 0, state.start, state.inputs + at)
    moved = replace(
        state,
        inputs=state.inputs + len(cells),
        counts=state.counts + hits.sum(0),
        lately=_remember(state.lately, hits),
        log_sum=log_sums[-1],
        height=path[-1] - lowest[-1],
        start=starts[-1],
    )
    best = log_sums.argmax(2, keepdim=True)
    evidence = log_sums.logsumexp(2) - math.log(log_sums.shape[2])
    return _renew_usual(moved), Paths(evidence, starts[1:].gather(2, best).squeeze(2))


def _log_urn(counts: Tensor, cells: Tensor, hits: Tensor) -> Tensor:
    """Log of Pólya's probability (B, M) of each cell given those before it."""
    before = _at(counts + hits.cumsum(0) - hits, cells)
    steps = torch.arange(len(cells), dtype=torch.float64, device=cells.device)
    return before.log() - (counts.sum(1) + steps[:, None]).log()


def _fixed_bets(usual: Tensor, cells: Tensor) -> Tensor:
    """Log probabilities (B, M, 14) of the cells after changes that are known in advance.

    The values' normal scores moved by half a standard deviation, or the odds of a tail became three times what
    they were, as those of rare events do. The bets are on what was usual before the change, not on the urn, which
    learns the change too.
    """
    share = usual / usual.sum(1, keepdim=True)
    middle = share.cumsum(1) - share / 2
    tilts = [shift * torch.special.ndtri(middle) for shift in _SHIFTS]
    for tail in _TAILS:
        tilts += [_ODDS * (middle < tail), _ODDS * (middle > 1 - tail)]
    log_q = (share.log() + torch.stack(tilts)).log_softmax(2).permute(1, 2, 0)
    return log_q[torch.arange(len(usual), device=usual.device), cells]


def _memory_bets(state: BetState, cells: Tensor, hits: Tensor) -> Tensor:
    """Log probabilities (B, M, 2) of the cells as seen lately, mixed with the usual ones: for changes of any kind."""
    share = _at((state.usual / state.usual.sum(1, keepdim=True)).expand_as(hits), cells)
    steps = torch.arange(len(cells), dtype=torch.float64, device=cells.device)[:, None]
    bets = []
    for memory, caution, lately in zip(_MEMORIES, _CAUTION, state.lately, strict=True):
        keep = 1 - 1 / memory
        weights = keep ** -(steps + 1)  # at most exp(8) within a block
        earlier = (hits * weights[:, :, None]).cumsum(0) - hits * weights[:, :, None]
        seen = keep**steps * _at(lately + earlier, cells)
        size = keep**steps * lately.sum(1) + (1 - keep**steps) * memory
        bets.append(((caution * share + seen) / (caution + size)).log())
    return torch.stack(bets, dim=2)


def _remember(lately: Tensor, hits: Tensor) -> Tensor:
    steps = torch.arange(len(hits) - 1, -1, -1, dtype=torch.float64, device=hits.device)
    kept = [
        (1 - 1 / memory) ** len(hits) * old + torch.einsum("b,bmk->mk", (1 - 1 / memory) ** steps, hits)
        for memory, old in zip(_MEMORIES, lately, strict=True)
    ]
    return torch.stack(kept)


def _renew_usual(state: BetState) -> BetState:
    if state.inputs % _LAG:
        return state
    return replace(state, usual=state.earlier, earlier=state.counts)


def _at(table: Tensor, cells: Tensor) -> Tensor:
    """Entries (B, M) of a table (B, M, K) at the cells (B, M)."""
    return table.gather(2, cells[:, :, None]).squeeze(2)
