"""Coincident failures: which versions are wrong at once, and is it more often than by chance?

Sound versions fail together too, on hard inputs, so that nearly every pair of real versions fails the test against
chance. What tells a common fault is a pair that stands out from the others in the share of failures that it shares.
There is no figure here for what difficulty explains: it cannot be told from a common fault by the failures alone.
Shuffling failures between versions while keeping how many of them fail each input (Ponocny, 2001) looks like such a
figure, but where some versions suffer more from hard inputs than others it accused sound ones in most simulations.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch
from scipy.stats import binom, hypergeom
from torch import Tensor

from deepfailguard.errors import ConfigurationError
from deepfailguard.evaluation.measures import check_answers
from deepfailguard.evaluation.report.figures import decimal, percent
from deepfailguard.types import NO_ANSWER

__all__ = [
    "JointFailures",
    "PairFailures",
    "failures_of",
    "holm_corrected",
    "joint_failures",
    "names_of",
    "pair_failures",
]

_LEAST_SHOWN: Final = 1e-4


@dataclass(frozen=True, slots=True)
class PairFailures:
    """How two versions fail together. A missing answer is a wrong answer.

    Attributes:
        first: name of one version.
        second: name of the other.
        both: inputs on which both are wrong.
        only_first: inputs on which the first alone is wrong.
        only_second: inputs on which the second alone is wrong.
        neither: inputs on which both are right.
        same_wrong_answer: inputs on which both give one and the same wrong answer, in [0, both]: two votes for
            it. Two missing answers are none.
        p_value: of Fisher's exact test that they fail together no more often than by chance, one-sided, corrected
            by Holm's method for the number of pairs.
    """

    first: str
    second: str
    both: int
    only_first: int
    only_second: int
    neither: int
    same_wrong_answer: int
    p_value: float

    @property
    def inputs(self) -> int:
        """B."""
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def failures(self) -> tuple[int, int]:
        """Inputs on which each is wrong."""
        return self.both + self.only_first, self.both + self.only_second

    @property
    def expected(self) -> float:
        """Inputs on which both would be wrong if they failed independently."""
        first, second = self.failures
        return first * second / self.inputs

    @property
    def ratio(self) -> float | None:
        """Shared failures over those expected, in [0, B]; None where none are expected."""
        return self.both / self.expected if self.expected else None

    @property
    def correlation(self) -> float | None:
        """Correlation (phi) of being wrong, in [-1, 1]; None where one is always right or always wrong."""
        (first, second), inputs = self.failures, self.inputs
        spread = first * (inputs - first) * second * (inputs - second)
        return (inputs * self.both - first * second) / spread**0.5 if spread else None

    @property
    def shared_of_fewer(self) -> float | None:
        """Which share of the better version's failures the other shares; None if one never fails."""
        fewer = min(self.failures)
        return self.both / fewer if fewer else None

    @property
    def shared_of_either(self) -> float | None:
        """Both wrong where either is (Jaccard's index), in [0, 1]: 1 for copies; None if none fails."""
        either = self.inputs - self.neither
        return self.both / either if either else None

    def as_dict(self) -> dict[str, Any]:
        """Counts and figures by name, flat and ready for JSON."""
        derived = ("expected", "ratio", "correlation", "shared_of_fewer", "shared_of_either")
        return asdict(self) | {name: getattr(self, name) for name in derived}

    def __str__(self) -> str:
        return (
            f"{self.first} and {self.second} are both wrong on {self.both} of {self.inputs} inputs, with the same "
            f"answer on {self.same_wrong_answer}; expected {decimal(self.expected, 1)} by chance "
            f"({_p(self.p_value)}); they share {percent(self.shared_of_either, 0)} of their failures"
        )


@dataclass(frozen=True, slots=True)
class JointFailures:
    """How often several versions are wrong at once, beside versions of the same accuracies that fail independently.

    For ``at_least=2`` this is the test of Knight & Leveson (1986). The failure rates are those measured on the same
    inputs, which makes z and the p-value a little cautious.

    Attributes:
        at_least: k in [2, N].
        observed: inputs on which at least k versions are wrong.
        expected: how many there would be.
        z: difference in standard deviations; None where independent versions leave no room for chance.
        p_value: one-sided, exact binomial.
    """

    at_least: int
    observed: int
    expected: float
    z: float | None
    p_value: float

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.at_least} or more are wrong on {self.observed} inputs, expected {decimal(self.expected, 1)} "
            f"by chance (z = {decimal(self.z, 1)}, {_p(self.p_value)})"
        )


def pair_failures(labels: Tensor, truth: Tensor, *, names: Sequence[str] | None = None) -> tuple[PairFailures, ...]:
    """Count and test the shared failures of each pair of versions, in the order (0, 1), (0, 2), ..., (1, 2), ...

    Args:
        labels: (B, N) int64, -1 for no answer.
        truth: (B,) int64 in [0, K).
        names: of the N versions; numbered if None.
    """
    failed, answers = failures_of(labels, truth), labels.cpu()
    inputs, versions = failed.shape
    names = names_of(names, versions)
    pairs = torch.triu_indices(versions, versions, 1).T.tolist()
    counts = [_counts(failed[:, i], failed[:, j], answers[:, i], answers[:, j]) for i, j in pairs]
    # Fisher's one-sided test is the upper tail of the hypergeometric distribution.
    p_values = [hypergeom.sf(both - 1, inputs, both + one, both + other) for both, one, other, _, _ in counts]
    corrected = holm_corrected(p_values)
    return tuple(
        PairFailures(names[i], names[j], *count, p_value=p_value)
        for (i, j), count, p_value in zip(pairs, counts, corrected, strict=True)
    )


def joint_failures(labels: Tensor, truth: Tensor) -> tuple[JointFailures, ...]:
    """How often at least k = 2..N versions are wrong at once; nothing for a single version.

    Args:
        labels: (B, N) int64, -1 for no answer.
        truth: (B,) int64 in [0, K).
    """
    failed = failures_of(labels, truth)
    inputs, versions = failed.shape
    chances = _number_wrong_if_independent(failed.double().mean(0))
    wrong = failed.sum(1)

    def one(k: int) -> JointFailures:
        chance, observed = min(1.0, float(chances[k:].sum())), int((wrong >= k).sum())
        variance = inputs * chance * (1 - chance)
        z = (observed - inputs * chance) / variance**0.5 if variance > 0 else None
        return JointFailures(k, observed, inputs * chance, z, float(binom.sf(observed - 1, inputs, chance)))

    return tuple(one(k) for k in range(2, versions + 1))


def failures_of(labels: Tensor, truth: Tensor) -> Tensor:
    """(B, N) bool on the CPU, where a version is wrong; no answer is wrong.

    Args:
        labels: (B, N) int64, -1 for no answer.
        truth: (B,) int64 in [0, K).

    Raises:
        DataFormatError: other shapes or types, no input, no version, or a true label below 0.
    """
    check_answers(labels, truth)
    return (labels != truth[:, None]).detach().cpu()


def names_of(names: Sequence[str] | None, versions: int) -> tuple[str, ...]:
    """The versions' names, ``version 0``, ``version 1``, ... if None.

    Raises:
        ConfigurationError: not one name per version.
    """
    if names is None:
        return tuple(f"version {i}" for i in range(versions))
    if len(names) != versions:
        raise ConfigurationError(f"need one name for each of {versions} versions, got {len(names)}: {list(names)}")
    return tuple(names)


def holm_corrected(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number by Holm's method (1979), in [0, 1], in the order given.

    >>> holm_corrected([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, at in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * float(p_values[at])))
        corrected[at] = largest
    return corrected


def _counts(first: Tensor, second: Tensor, answer: Tensor, other: Tensor) -> tuple[int, int, int, int, int]:
    both = first & second
    same = both & (answer == other) & (answer != NO_ANSWER)
    sets = (both, first & ~second, second & ~first, ~first & ~second, same)
    one, two, three, four, five = (int(chosen.sum()) for chosen in sets)
    return one, two, three, four, five


def _number_wrong_if_independent(rates: Tensor) -> Tensor:
    """(N + 1,) float64, chance that 0..N versions are wrong at once."""
    chances = torch.zeros(len(rates) + 1, dtype=torch.float64)
    chances[0] = 1.0
    for rate in rates:
        chances[1:], chances[0] = chances[1:] * (1 - rate) + chances[:-1] * rate, chances[0] * (1 - rate)
    return chances


def _p(value: float) -> str:
    return f"p < {_LEAST_SHOWN}" if value < _LEAST_SHOWN else f"p = {value:.2g}"
