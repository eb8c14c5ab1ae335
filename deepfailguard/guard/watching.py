"""Watching versions in service, where no labels come: which one is no longer what it was in calibration."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Final, Self

import torch
from torch import Tensor

from deepfailguard.errors import ConfigurationError, DataFormatError, NotFittedError
from deepfailguard.guard.cells import Cells, fit_cells
from deepfailguard.guard.sequential import BetState, advance, bet_tensors, bets_of, forget, held, start_bets, take_back
from deepfailguard.guard.standing import Standing, dropped, forgotten, noted, standing, with_alarms
from deepfailguard.guard.statistics import disagreement, statistics_of
from deepfailguard.guard.watch_report import DISAGREEMENT, Alarm, WatchReport, cause_of
from deepfailguard.predictor.states import below, record_of, tensors_of, under
from deepfailguard.seeding import generator
from deepfailguard.types import NO_ANSWER

__all__ = ["LEAST_CALIBRATION", "VersionWatch"]

LEAST_CALIBRATION: Final = 100
_SUSPECTED: Final = math.log(1000.0)  # by chance one statistic in fifty has it; counts beside an alarm only


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
    ==================================  ===================================================================

    Not to be called from two threads at once.

    Args:
        scores: names of the scores that `fit` and `update` will be given; may be empty for two versions and more.
        names: of the versions, for reports; "version 0" and so on if empty.
        inputs_per_false_alarm: see above, > 1.
        seed: of the random numbers that order ties.

    Attributes:
        cells_: of the M = N * (statistics per version) statistics.
        bets_: what the inputs told so far.
        standing_: alarms, and what the statistics were lately.

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
        self.standing_: Standing | None = None
        self._urns: dict[str, Tensor] = {}  # of disagreement, (N, K), by who was watched, as in "101"

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
        values = statistics_of(labels, scores, self.scores)
        versions = labels.shape[1]
        if len(labels) < LEAST_CALIBRATION:
            raise DataFormatError(
                f"watching needs at least {LEAST_CALIBRATION} calibration inputs, got {len(labels)}; "
                "give it 1000 for small changes to be noticed too"
            )
        if values.shape[1] == 0:
            raise ConfigurationError(f"nothing to watch: {versions} version(s) without a score; name one in scores")
        self._check_names(versions)
        self.versions_ = versions
        self.cells_ = fit_cells(values, self._ties(len(values)))
        self.bets_ = start_bets(self.cells_.gaps, values.shape[1])
        self.standing_ = standing(values)
        self._random = generator(self.seed, "watch service")
        self._active = torch.ones(versions, dtype=torch.bool)
        self._urns = {}
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
        cells, bets, stood = self._fitted()
        if labels.ndim == 2 and labels.shape[1] != self.versions_:
            raise DataFormatError(f"fitted on {self.versions_} versions, got labels of {labels.shape[1]}; fit again")
        values = statistics_of(labels, scores, self.scores, self._active)
        ties = torch.rand(values.shape, generator=self._random, dtype=torch.float64)
        after, paths = advance(bets, cells.of(values, ties))
        watched = self._per_statistic(self._active)
        threshold = math.log(self.inputs_per_false_alarm * len(watched))  # the statistics share the budget
        stands = with_alarms(noted(stood, values, watched), paths, bets.inputs, threshold, watched)
        # Evidence starts anew after an alarm, or R would not be fair.
        self.bets_, self.standing_ = take_back(held(after, bets, ~watched), stands.alarmed), stands
        return self.report()

    def report(self) -> WatchReport:
        """How the versions stand after the inputs so far."""
        _, bets, stands = self._fitted()
        alarmed = self._per_version(stands.alarmed)
        strong = bets.log_sum.logsumexp(1) - math.log(bets.log_sum.shape[1]) >= _SUSPECTED
        suspected = alarmed | self._per_version(strong)
        which = stands.alarmed.nonzero().flatten().tolist()
        return WatchReport(
            inputs=bets.inputs,
            names=self._names(),
            alarms=tuple(self._alarm(i, stands) for i in sorted(which, key=lambda i: int(stands.raised[i]))),
            changed=alarmed.any(1),
            cause=cause_of(alarmed, suspected, self.versions_ > 1),
        )

    def acknowledge(self, versions: Sequence[int] | None = None) -> None:
        """Take note of alarms: they no longer stand, what was seen counts as usual from now on.

        The bound on false alarms goes on to hold if the moment is not chosen by what the other statistics show.

        Args:
            versions: positions; all versions if None.
        """
        _, bets, stands = self._fitted()
        which = self._of_versions(versions) & stands.alarmed
        self.bets_, self.standing_ = take_back(bets, which), dropped(stands, which)

    def renew(self, versions: Sequence[int] | None = None) -> None:
        """Forget all that was seen of some versions in service: they were repaired, and are as in calibration.

        Not for what turned out to be a false alarm: the same calibration inputs, which were unlucky then, would give
        the next one sooner than the bound says. Acknowledge it.

        Args:
            versions: positions; all versions if None.
        """
        cells, bets, stands = self._fitted()
        which = self._of_versions(versions)
        self.bets_, self.standing_ = forget(bets, which, cells.gaps), forgotten(stands, which)
        repaired = set(range(self.versions_) if versions is None else versions)
        self._urns = {key: urn for key, urn in self._urns.items() if not any(key[v] == "1" for v in repaired)}

    def watch_only(self, versions: Sequence[int], labels: Tensor) -> None:
        """Leave the other versions out from now on: they are no longer watched, and nobody is compared with them.

        Alarms of those that are left out stand, and their scores go on where they were if they come back. Among other
        versions disagreement is another one: usual is what was seen of it when the same versions were watched before,
        or calibration alone. Alarms of it no longer stand for those that are watched.

        Args:
            versions: positions of those that are watched, at least one.
            labels: (n, N) int64, those that `fit` was given.

        Raises:
            ConfigurationError: other labels than in calibration, or no version to watch.
        """
        cells, bets, stands = self._fitted()
        if labels.shape != (int(cells.gaps.sum()) - 1, self.versions_):
            raise ConfigurationError(f"expected the labels of calibration, got others of shape {tuple(labels.shape)}")
        if not len(versions):
            raise ConfigurationError("no version would be left to watch; name at least one")
        before, active = self._active, self._per_version(self._of_versions(versions))[:, 0]
        self._active = active
        if self.versions_ == 1:
            return
        first = torch.arange(len(stands.usual)) % self._per_one(self.versions_) == 0
        values = disagreement(torch.where(active, labels.cpu(), NO_ANSWER)).double()
        fresh = fit_cells(values, self._ties(len(values))[:, first])  # the same whenever the same are watched
        last, now = ("".join(str(int(each)) for each in watched) for watched in (before, active))
        urns, self._urns[last] = bets.counts.clone(), bets.counts[first]
        urns[first] = self._urns.get(now, cells.gaps)
        self.cells_, self.bets_ = cells.with_rows(first, fresh), forget(bets, first, urns)
        usual = torch.where(active, values.mean(0), stands.usual[first])  # who is left out has alarms that tell of it
        stands = replace(stands, usual=stands.usual.masked_scatter(first, usual))
        self.standing_ = forgotten(stands, first & self._per_statistic(active))

    def state(self) -> dict[str, Tensor]:
        """What was learned and seen, as named tensors: enough to go on elsewhere as if nothing had happened."""
        cells, bets, stands = self._fitted()
        own = {"random": self._random.get_state(), "versions": torch.tensor(self.versions_), "active": self._active}
        seen = under("cells", tensors_of(cells)) | under("bets", bet_tensors(bets)) | under("urn", self._urns)
        return {**seen, **tensors_of(stands), **own}

    def with_state(self, state: dict[str, Tensor]) -> Self:
        """Take back what `state` returned; returns itself."""
        records = {"": Standing, "cells.": Cells, "bets.": BetState}
        told = {f"{start}{field.name}" for start, record in records.items() for field in fields(record)}
        expected = told | {"random", "versions", "active"}
        if {name for name in state if not name.startswith("urn.")} != expected:
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
        self.versions_, self._active = versions, state["active"]
        self.cells_, self.standing_ = record_of(Cells, below("cells", state)), record_of(Standing, state)
        self.bets_, self._urns = bets_of(below("bets", state)), below("urn", state)
        self._random = torch.Generator()
        self._random.set_state(state["random"])
        return self

    def _fitted(self) -> tuple[Cells, BetState, Standing]:
        if self.cells_ is None or self.bets_ is None or self.standing_ is None:
            raise NotFittedError("this VersionWatch was not fitted yet; call fit(labels, scores) or with_state(state)")
        return self.cells_, self.bets_, self.standing_

    def _ties(self, count: int) -> Tensor:
        """Random numbers (n, M) that order equal calibration values."""
        random = generator(self.seed, "watch calibration")
        return torch.rand(count, self.versions_ * self._per_one(self.versions_), generator=random, dtype=torch.float64)

    def _check_names(self, versions: int) -> None:
        if self.names and len(self.names) != versions:
            raise ConfigurationError(f"got {len(self.names)} names for {versions} versions; give one name each")

    def _alarm(self, position: int, stands: Standing) -> Alarm:
        version, statistic = divmod(position, self._per_one(self.versions_))
        told = [DISAGREEMENT] * (self.versions_ > 1) + list(self.scores)
        return stands.alarm(position, version, self._names()[version], told[statistic])

    def _names(self) -> tuple[str, ...]:
        return tuple(self.names) or tuple(f"version {i}" for i in range(self.versions_))

    def _per_one(self, versions: int) -> int:
        return len(self.scores) + (versions > 1)

    def _per_version(self, statistics: Tensor) -> Tensor:
        return statistics.reshape(self.versions_, -1)

    def _per_statistic(self, versions: Tensor) -> Tensor:
        """(M,) from (N,)."""
        return versions.repeat_interleave(self._per_one(self.versions_))

    def _of_versions(self, versions: Sequence[int] | None) -> Tensor:
        """(M,) bool, the statistics of some versions."""
        chosen = range(self.versions_) if versions is None else versions
        unknown = [v for v in chosen if not 0 <= v < self.versions_]
        if unknown:
            raise ConfigurationError(f"versions must be in [0, {self.versions_}), got {unknown}")
        mask = torch.zeros(self.versions_, dtype=torch.bool)
        mask[list(chosen)] = True
        return self._per_statistic(mask)
