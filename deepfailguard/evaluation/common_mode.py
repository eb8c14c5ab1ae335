"""Common mode: do versions fail together, and how many independent versions are they worth?"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch
from torch import Tensor

from deepfailguard.errors import ConfigurationError
from deepfailguard.evaluation.coincidence import (
    JointFailures,
    PairFailures,
    failures_of,
    joint_failures,
    names_of,
    pair_failures,
)
from deepfailguard.evaluation.intervals import Interval
from deepfailguard.evaluation.report.figures import decimal, percent
from deepfailguard.seeding import generator

__all__ = ["CommonMode", "common_mode", "effective_versions"]

_DRAWS_AT_ONCE: Final = 1 << 21  # inputs times resamples in memory at once
_CLOSEST: Final = 10
_SHOWN: Final = 5  # pairs named in the text


@dataclass(frozen=True, slots=True)
class CommonMode:
    """The report on one ensemble.

    Attributes:
        names: of the N versions.
        inputs: B.
        failures: inputs on which each version is wrong.
        effective: how many independent versions they are worth, in [1, N]; None where that cannot be told.
        pairs: the N (N - 1) / 2 pairs.
        joint: for k = 2..N.
        level: 1 - level is the error that its statements may have.
    """

    names: tuple[str, ...]
    inputs: int
    failures: tuple[int, ...]
    effective: Interval | None
    pairs: tuple[PairFailures, ...]
    joint: tuple[JointFailures, ...]
    level: float

    @property
    def coincident(self) -> tuple[PairFailures, ...]:
        """Pairs that fail together more often than by chance, those that share most of their failures first."""
        return tuple(pair for pair in _by_share(self.pairs) if pair.p_value <= 1 - self.level)

    @property
    def closest(self) -> tuple[PairFailures, ...]:
        """The ten pairs that share most of their failures."""
        return _by_share(self.pairs)[:_CLOSEST]

    @property
    def worth(self) -> str:
        """How many independent versions they are worth, in a sentence."""
        if self.effective is None:
            return "How many independent versions they are worth cannot be told: too few of them were ever wrong."
        low, high = decimal(self.effective.low, 1), decimal(self.effective.high, 1)
        span = f"{percent(self.effective.level, 0)} interval {low} to {high}"
        return f"They are worth {decimal(self.effective.estimate, 1)} independent versions ({span})."

    def as_dict(self) -> dict[str, Any]:
        """Everything by name, nested and ready for JSON."""
        return {
            "names": list(self.names),
            "inputs": self.inputs,
            "failures": list(self.failures),
            "effective": None if self.effective is None else asdict(self.effective),
            "pairs": [pair.as_dict() for pair in self.pairs],
            "joint": [each.as_dict() for each in self.joint],
            "level": self.level,
        }

    def __str__(self) -> str:
        wrong = ", ".join(f"{name} {count}" for name, count in zip(self.names, self.failures, strict=True))
        head = f"Wrong answers on {self.inputs} inputs: {wrong}."
        if not self.pairs:
            return f"{head}\nA single version has nothing to fail together with."
        both_ends = dict.fromkeys((self.joint[0], self.joint[-1]))
        count = f"Pairs that fail together more often than by chance: {len(self.coincident)} of {len(self.pairs)}."
        lines = [head, self.worth, *(f"{each}." for each in both_ends), count]
        return "\n".join([*lines, *(f"- {pair}." for pair in self.coincident[:_SHOWN])])


def _by_share(pairs: Iterable[PairFailures]) -> tuple[PairFailures, ...]:
    return tuple(sorted(pairs, key=lambda pair: -(pair.shared_of_either or 0.0)))


def common_mode(
    labels: Tensor, truth: Tensor, *, seed: int, names: Sequence[str] | None = None, level: float = 0.95
) -> CommonMode:
    """Report how the versions of one ensemble fail together.

    Args:
        labels: (B, N) int64, the versions' answers to labelled inputs that they did not learn from, -1 for none.
        truth: (B,) int64 in [0, K).
        seed: of the resamples.
        names: of the N versions; numbered if None.
        level: of the interval and of the statements, in (0, 1).

    Raises:
        DataFormatError: the inputs do not fit together, or there are none.

    >>> answers = torch.tensor([[0, 0], [1, 1], [1, 1], [0, 1]])
    >>> report = common_mode(answers, torch.tensor([0, 0, 0, 0]), seed=0)
    >>> report.pairs[0].both, report.pairs[0].same_wrong_answer, round(report.effective.estimate, 2)
    (2, 2, 1.27)
    """
    failed = failures_of(labels, truth)
    return CommonMode(
        names=names_of(names, labels.shape[1]),
        inputs=len(truth),
        failures=tuple(failed.sum(0).tolist()),
        effective=effective_versions(labels, truth, seed=seed, level=level),
        pairs=pair_failures(labels, truth, names=names),
        joint=joint_failures(labels, truth),
        level=level,
    )


def effective_versions(
    labels: Tensor, truth: Tensor, *, seed: int, resamples: int = 1000, level: float = 0.95
) -> Interval | None:
    """How many versions that fail independently these are worth: N / (1 + (N - 1) r), kept in [1, N].

    r is the mean correlation of being wrong over the pairs. This is the size at which independent versions would
    have the same spread in how many are wrong at once, so it is what a vote gains from (the design effect of Kish,
    1965). The effective rank of the correlations was set aside: it hardly falls for the mild correlation among all
    versions that hard inputs cause, which is what ruins votes.

    A version that is always right or always wrong has no correlation; its pairs count as 0. One version is worth
    1. Where no pair has a correlation, nothing is known: None.

    Args:
        labels: (B, N) int64, -1 for no answer.
        truth: (B,) int64 in [0, K).
        seed: of the resamples.
        resamples: how often the inputs are drawn anew for the percentile bootstrap interval, >= 1.
        level: of the interval, in (0, 1).
    """
    if resamples < 1 or not 0 < level < 1:
        raise ConfigurationError(f"need resamples >= 1 and level in (0, 1), got {resamples} and {level}")
    failed = failures_of(labels, truth)
    inputs, versions = failed.shape
    if versions == 1:
        return Interval(1.0, 1.0, 1.0, level)
    if int((failed.any(0) & ~failed.all(0)).sum()) < 2:
        return None
    first, second = torch.triu_indices(versions, versions, 1)
    # Inputs that no version fails add nothing to any sum but the number of inputs.
    failing = failed.any(1)
    wrong = failed[failing].double()
    both = wrong[:, first] * wrong[:, second]
    estimate = _worth(torch.ones(1, len(wrong), dtype=torch.float64), wrong, both, inputs)
    drawn = torch.cat([_worth(w[:, failing], wrong, both, inputs) for w in _draws(inputs, resamples, seed)])
    ends = torch.quantile(drawn, torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64))
    return Interval(float(estimate), float(ends[0]), float(ends[1]), level)


def _draws(inputs: int, resamples: int, seed: int) -> Iterator[Tensor]:
    """How often each input is drawn, (resamples, B) float64 in pieces that fit in memory."""
    random = generator(seed, "effective versions")
    at_once = max(1, _DRAWS_AT_ONCE // inputs)
    for start in range(0, resamples, at_once):
        chosen = torch.randint(inputs, (min(at_once, resamples - start), inputs), generator=random)
        once = torch.ones(chosen.shape, dtype=torch.float64)
        yield torch.zeros_like(once).scatter_add_(1, chosen, once)


def _worth(weights: Tensor, wrong: Tensor, both: Tensor, inputs: int) -> Tensor:
    """(R,) float64, effective number under each weighting (R, F) of the inputs that some version fails."""
    versions = wrong.shape[1]
    first, second = torch.triu_indices(versions, versions, 1)
    failures = weights @ wrong
    spread = failures * (inputs - failures)  # whole numbers, so that never and always failing give exactly 0
    scale = (spread[:, first] * spread[:, second]).sqrt()
    common = inputs * (weights @ both) - failures[:, first] * failures[:, second]
    correlation = torch.where(scale > 0, common / scale, 0.0)
    # Bounding the divisor, not the quotient: it may be 0 where versions take turns in failing.
    return versions / (1 + (versions - 1) * correlation.mean(1)).clamp(1, versions)
