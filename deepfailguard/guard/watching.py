"""Watching versions in service, where no labels come: which one is no longer what it was in calibration."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Final, Self

import torch
from torch import Tensor

from deepfailguard.errors import ConfigurationError, DataFormatError, NotFittedError
from deepfailguard.guard.sequential import BetState, Cells, Paths, advance, fit_cells, forget, start_bets, take_back
from deepfailguard.guard.watch_report import DISAGREEMENT, Alarm, WatchReport, cause_of
from deepfailguard.seeding import generator
from deepfailguard.types import NO_ANSWER

__all__ = ["LEAST_CALIBRATION", "VersionWatch", "disagreement"]

LEAST_CALIBRATION: Final = 100
_MEMORY: Final = 32.0  # inputs that "lately" means in reports
_LARGEST_LOG: Final = 700.0  # its exponential is still a number
_SUSPECTED: Final = math.log(10_000.0)  # by chance one statistic in a thousand has it; counts beside an alarm only


class VersionWatch:
    """Notices without labels that a version broke after calibration, or that the inputs changed for all.

    Watched are, per version, whether it disagrees with the others' majority and any scores of its answers, each
    against its own distribution in calibration and in either direction. An alarm stands until it is acknowledged.

    While calibration inputs and service inputs are exchangeable (drawn alike, in no telling order), the expected
    number of alarms in any T inputs, of all versions and statistics together, is at most T / inputs_per_false_alarm.
    This is proven (`sequential`) for any distributions, any dependence between versions and statistics, and any
    size of the calibration set. Consecutive frames of one video, or classes that come in turns, are not exchangeable.

    ==================================  ===================================================================
    case                                what happens
    ==================================  ===================================================================
    label -1                            all statistics of this version count as the most extreme (+inf)
    score NaN                           this score counts as the most extreme (+inf)
    ties, also a constant score         ordered by random numbers from the seed
    the others' majority is a tie       a version that gave any of the leading answers agrees
    no other version answered           counts as agreement: there is nothing to disagree with
    one version only                    no disagreement; scores alone are watched
    fewer than 100 calibration inputs   refused; 1000 are needed to notice small changes
    0 inputs in a batch                 the report is as before
    ==================================  ===================================================================

    What it costs, simulated with 1000 calibration inputs, 5 versions and one score: a disagreement that rises from
    10 % to 25 % is noticed after 175 inputs in the median (684 in 99 of 100 cases; 144 and 364 once 2000 inputs came
    as usual), from 10 % to 90 % after 17 (26), a score moved by half a standard deviation after 120 (340), a stuck
    one after 11. With 300 calibration inputs only the large changes are sure to be noticed from the first input on.

    Not to be called from two threads at once.

    Args:
        scores: names of the scores that `fit` and `update` will be given; may be empty for two versions and more.
        names: of the versions, for reports; "version 0" and so on if empty.
        inputs_per_false_alarm: see above, > 1.
        seed: of the random numbers that order ties.

    Attributes:
        cells_: of the M = N * (statistics per version) statistics.
        bets_: what the inputs told so far.

    Example:
        >>> draw = generator(0, "doctest")
        >>> labels, confidence = torch.zeros(500, 3, dtype=torch.int64), torch.rand(500, 3, generator=draw)
        >>> watch = VersionWatch().fit(labels, {"confidence": confidence})
        >>> broken = labels[:64].clone()
        >>> broken[:, 2] = 1
        >>> report = watch.update(broken, {"confidence": torch.rand(64, 3, generator=draw)})
        >>> report.changed.tolist(), report.cause
        ([False, False, True], 'versions')
    """

    def __init__(
        self,
        scores: Sequence[str] = ("confidence",),
        *,
        names: Sequence[str] = (),
        inputs_per_false_alarm: float = 100_000.0,
        seed: int = 0,
    ) -> None:
        if len(set(scores)) != len(scores) or DISAGREEMENT in scores:
            raise ConfigurationError(f"scores need different names other than {DISAGREEMENT!r}, got {list(scores)}")
        if not 1 < inputs_per_false_alarm < math.inf:
            raise ConfigurationError(f"inputs_per_false_alarm must be finite and > 1, got {inputs_per_false_alarm}")
        self.scores = scores
        self.names = names
        self.inputs_per_false_alarm = inputs_per_false_alarm
        self.seed = seed
        self.versions_ = 0
        self.cells_: Cells | None = None
        self.bets_: BetState | None = None

    def fit(self, labels: Tensor, scores: Mapping[str, Tensor]) -> Self:
        """Learn what is usual.

        Args:
            labels: (n, N) int64 answers to calibration inputs that no version was trained on, -1 for none.
            scores: (n, N) floating per name, any real-valued evidence of the answers that was not itself learned on
                these inputs: it would differ from that of service from the start.

        Raises:
            DataFormatError: fewer than 100 inputs, other shapes or other names than those of the constructor.
            ConfigurationError: there is nothing to watch, or another number of names than of versions.
        """
        values = self._statistics(labels, scores)
        versions = labels.shape[1]
        if len(labels) < LEAST_CALIBRATION:
            raise DataFormatError(
                f"watching needs at least {LEAST_CALIBRATION} calibration inputs, got {len(labels)}; "
                "give it 1000 for small changes to be noticed too"
            )
        if values.shape[1] == 0:
            raise ConfigurationError(f"nothing to watch: {versions} version(s) without a score; name one in scores")
        self._check_names(versions)
        random = generator(self.seed, "watch calibration")
        self.versions_ = versions
        self.cells_ = fit_cells(values, torch.rand(values.shape, generator=random, dtype=torch.float64))
        self.bets_ = start_bets(self.cells_.gaps, values.shape[1])
        self._random = generator(self.seed, "watch service")
        present = values.isfinite()
        self._usual = torch.where(present, values, 0.0).sum(0) / present.sum(0)
        self._lately = torch.zeros(3, values.shape[1], dtype=torch.float64)
        self._raised = torch.full((values.shape[1],), -1)
        self._since = torch.zeros_like(self._raised)
        self._log_evidence = torch.zeros_like(self._usual)
        return self

    def update(self, labels: Tensor, scores: Mapping[str, Tensor]) -> WatchReport:
        """Watch a batch of B >= 0 inputs; batches of any size lead to the same alarms.

        Args:
            labels: (B, N) int64, -1 for no answer.
            scores: (B, N) floating per name.

        Raises:
            NotFittedError: it was not fitted yet.
            DataFormatError: other shapes or other names than in calibration; nothing was watched then.
        """
        cells, bets = self._fitted()
        values = self._statistics(labels, scores)
        if labels.shape[1] != self.versions_:
            raise DataFormatError(f"fitted on {self.versions_} versions, got labels of {labels.shape[1]}; fit again")
        ties = torch.rand(values.shape, generator=self._random, dtype=torch.float64)
        after, paths = advance(bets, cells.of(values, ties))
        self._raise_alarms(paths, bets.inputs)
        self._lately = _average(self._lately, values)
        self.bets_ = take_back(after, self._raised >= 0)  # evidence starts anew after an alarm, or R would not be fair
        return self.report()

    def report(self) -> WatchReport:
        """How the versions stand after the inputs so far."""
        _, bets = self._fitted()
        alarmed = self._per_version(self._raised >= 0)
        strong = bets.log_sum.logsumexp(1) - math.log(bets.log_sum.shape[1]) >= _SUSPECTED
        suspected = alarmed | self._per_version(strong)
        which = (self._raised >= 0).nonzero().flatten().tolist()
        return WatchReport(
            inputs=bets.inputs,
            names=self._names(),
            alarms=tuple(self._alarm(i) for i in sorted(which, key=lambda i: int(self._raised[i]))),
            changed=alarmed.any(1),
            cause=cause_of(alarmed, suspected, self.versions_ > 1),
        )

    def acknowledge(self, versions: Sequence[int] | None = None) -> None:
        """Take note of alarms: they no longer stand, what was seen counts as usual from now on.

        The bound on false alarms goes on to hold if the moment is not chosen by what the other statistics show.

        Args:
            versions: positions; all versions if None.
        """
        _, bets = self._fitted()
        which = self._of_versions(versions) & (self._raised >= 0)
        self.bets_ = take_back(bets, which)
        self._raised = torch.where(which, -1, self._raised)

    def renew(self, versions: Sequence[int] | None = None) -> None:
        """Forget all that was seen of some versions in service: they were repaired, and are as in calibration.

        Not for what turned out to be a false alarm: the same calibration inputs, which were unlucky then, would give
        the next one sooner than the bound says. Acknowledge it.

        Args:
            versions: positions; all versions if None.
        """
        cells, bets = self._fitted()
        which = self._of_versions(versions)
        self.bets_ = forget(bets, which, cells.gaps)
        self._lately = torch.where(which, 0.0, self._lately)
        self._raised = torch.where(which, -1, self._raised)

    def state(self) -> dict[str, Tensor]:
        """What was learned and seen, as named tensors: enough to go on elsewhere as if nothing had happened."""
        cells, bets = self._fitted()
        return {
            **{f"cells.{field.name}": getattr(cells, field.name) for field in fields(Cells)},
            **{f"bets.{field.name}": torch.as_tensor(getattr(bets, field.name)) for field in fields(BetState)},
            "usual": self._usual,
            "lately": self._lately,
            "raised": self._raised,
            "since": self._since,
            "log_evidence": self._log_evidence,
            "random": self._random.get_state(),
            "versions": torch.tensor(self.versions_),
        }

    def with_state(self, state: dict[str, Tensor]) -> Self:
        """Take back what `state` returned; returns itself."""
        of_cells, of_bets = [f.name for f in fields(Cells)], [f.name for f in fields(BetState)]
        own = ("usual", "lately", "raised", "since", "log_evidence", "random", "versions")
        expected = {*(f"cells.{name}" for name in of_cells), *(f"bets.{name}" for name in of_bets), *own}
        if set(state) != expected:
            raise ConfigurationError(
                f"VersionWatch expects the state {', '.join(sorted(expected))}, got {', '.join(sorted(state))}; "
                "pass what state() of the same class returned"
            )
        versions, statistics = int(state["versions"]), len(state["usual"])
        if versions * self._per_one(versions) != statistics:
            raise ConfigurationError(
                f"the state holds {statistics} statistics of {versions} versions, which are not those of the scores "
                f"{list(self.scores)}; make the watch with the scores that it was fitted with"
            )
        self._check_names(versions)
        self.versions_ = versions
        self.cells_ = Cells(**{name: state[f"cells.{name}"] for name in of_cells})
        bets = {name: state[f"bets.{name}"] for name in of_bets if name != "inputs"}
        self.bets_ = BetState(inputs=int(state["bets.inputs"]), **bets)
        self._usual, self._lately, self._raised = state["usual"], state["lately"], state["raised"]
        self._since, self._log_evidence = state["since"], state["log_evidence"]
        self._random = torch.Generator()
        self._random.set_state(state["random"])
        return self

    def _fitted(self) -> tuple[Cells, BetState]:
        if self.cells_ is None or self.bets_ is None:
            raise NotFittedError("this VersionWatch was not fitted yet; call fit(labels, scores) or with_state(state)")
        return self.cells_, self.bets_

    def _check_names(self, versions: int) -> None:
        if self.names and len(self.names) != versions:
            raise ConfigurationError(f"got {len(self.names)} names for {versions} versions; give one name each")

    def _statistics(self, labels: Tensor, scores: Mapping[str, Tensor]) -> Tensor:
        """All statistics (B, N * statistics per version) float64 on the CPU, the most extreme as +inf."""
        _check(labels, scores, self.scores)
        labels = labels.detach().cpu()
        columns = [scores[name].detach().cpu().double() for name in self.scores]
        if labels.shape[1] > 1:
            columns.insert(0, disagreement(labels).double())
        if not columns:
            return torch.zeros(len(labels), 0, dtype=torch.float64)
        values = torch.stack(columns, dim=2)
        extreme = values.isnan() | (labels == NO_ANSWER)[:, :, None]
        return torch.where(extreme, torch.inf, values).flatten(1)

    def _raise_alarms(self, paths: Paths, first: int) -> None:
        threshold = math.log(self.inputs_per_false_alarm * len(self._raised))  # the statistics share the budget
        over = paths.log_evidence >= threshold
        new = over.any(0) & (self._raised < 0)
        if not new.any():
            return
        at = over.int().argmax(0)[None]
        self._raised = torch.where(new, first + at[0], self._raised)
        self._since = torch.where(new, paths.since.gather(0, at)[0], self._since)
        self._log_evidence = torch.where(new, paths.log_evidence.gather(0, at)[0], self._log_evidence)

    def _alarm(self, position: int) -> Alarm:
        per_one = self._per_one(self.versions_)
        version, statistic = divmod(position, per_one)
        weight, total, missing = self._lately[:, position].tolist()
        return Alarm(
            version=version,
            name=self._names()[version],
            statistic=([DISAGREEMENT] * (self.versions_ > 1) + list(self.scores))[statistic],
            since=int(self._since[position]),
            raised=int(self._raised[position]),
            # Divided by their number, so that it is the rate of this much from any statistic.
            evidence=math.exp(min(float(self._log_evidence[position]), _LARGEST_LOG)) / len(self._raised),
            usual=float(self._usual[position]),
            lately=total / weight if weight else math.nan,
            missing=missing / (weight + missing) if weight + missing else 0.0,
        )

    def _names(self) -> tuple[str, ...]:
        return tuple(self.names) or tuple(f"version {i}" for i in range(self.versions_))

    def _per_one(self, versions: int) -> int:
        return len(self.scores) + (versions > 1)

    def _per_version(self, statistics: Tensor) -> Tensor:
        return statistics.reshape(self.versions_, -1)

    def _of_versions(self, versions: Sequence[int] | None) -> Tensor:
        """(M,) bool, the statistics of some versions."""
        chosen = range(self.versions_) if versions is None else versions
        unknown = [v for v in chosen if not 0 <= v < self.versions_]
        if unknown:
            raise ConfigurationError(f"versions must be in [0, {self.versions_}), got {unknown}")
        mask = torch.zeros(self.versions_, dtype=torch.bool)
        mask[list(chosen)] = True
        return mask.repeat_interleave(self._per_one(self.versions_))


def disagreement(labels: Tensor) -> Tensor:
    """Whether each version's answer is none of the leading answers of the other versions, (B, N) bool.

    False where no other version answered. No answer (-1) disagrees with any answer and counts for none.

    Args:
        labels: (B, N) int64, N >= 1.

    >>> disagreement(torch.tensor([[4, 7, 7], [4, 7, 9], [4, -1, -1]])).tolist()
    [[True, False, False], [True, True, True], [False, True, True]]
    """
    answered = labels != NO_ANSWER
    same = (labels[:, :, None] == labels[:, None, :]) & answered[:, :, None] & answered[:, None, :]
    support = same.sum(2)
    # How many others gave the answer of i, as seen by j: j's own vote counts for nothing.
    seen = support[:, :, None] - same.int()
    others = ~torch.eye(labels.shape[1], dtype=torch.bool, device=labels.device)
    leading = (seen * others).amax(1)
    return support - answered.int() < leading


def _average(lately: Tensor, values: Tensor) -> Tensor:
    """Sums (3, M) of counts, values and counts of not finite values, recent ones counting more, after (B, M) more."""
    present = values.isfinite()
    told = torch.stack([present.double(), torch.where(present, values, 0.0), (~present).double()])
    keep = 1 - 1 / _MEMORY
    weights = keep ** torch.arange(len(values) - 1, -1, -1, dtype=torch.float64)
    return keep ** len(values) * lately + torch.einsum("b,sbm->sm", weights, told)


def _check(labels: Tensor, scores: Mapping[str, Tensor], expected: Sequence[str]) -> None:
    if labels.ndim != 2 or labels.shape[1] == 0 or labels.dtype != torch.int64:
        raise DataFormatError(
            f"labels must be int64 (B, N) with N >= 1 versions, got {labels.dtype} {tuple(labels.shape)}; "
            "give one column per version"
        )
    if set(scores) != set(expected):
        raise DataFormatError(
            f"expected the scores {sorted(expected)}, got {sorted(scores)}; name them in scores=[...]"
        )
    for name, score in scores.items():
        if score.shape != labels.shape or not score.is_floating_point():
            raise DataFormatError(
                f"score {name!r} must be floating {tuple(labels.shape)} like the labels, "
                f"got {score.dtype} {tuple(score.shape)}"
            )
