"""`DynamicSelectionPredictor`: for each input, believe the versions that were right on similar calibration inputs."""

from dataclasses import dataclass
from typing import ClassVar, Final, Literal, Self, get_args

import torch
from torch import Tensor

from deepfailguard.errors import ConfigurationError
from deepfailguard.predictor.checks import check_calibration, check_evidence, check_fitted, check_state
from deepfailguard.predictor.class_posterior import CalibratedSoftmax, failure_of, fit_sharpness, heard, smoothed
from deepfailguard.seeding import generator
from deepfailguard.types import Evidence, Need

__all__ = ["Bank", "DynamicSelectionPredictor", "SelectionMethod", "selection_votes"]

SelectionMethod = Literal["ola", "knora_u", "knora_e", "des_p"]

_CHUNK: Final = 512  # inputs that are compared with the bank at once
_TRIED: Final = 2000  # calibration inputs of which the sharpness of the votes is learned


@dataclass(frozen=True, slots=True)
class Bank:
    """The M calibration inputs, as the N versions saw them.

    Attributes:
        points: (M, N K) float32, the versions' class probabilities.
        right: (M, N) bool, whether the version was right; false where it did not answer.
    """

    points: Tensor
    right: Tensor

    def right_nearby(self, points: Tensor, neighbours: int, leave_out: Tensor | None = None) -> Tensor:
        """Who was right on the nearest inputs, the nearest first: (B, k, N) bool, k = min(neighbours, those there are).

        Of equally near inputs the earlier in the bank comes first.

        Args:
            points: (B, N K) float32.
            neighbours: >= 1.
            leave_out: (B,) int64, for each a position in the bank that is no neighbour.
        """
        bank, right = self.points.to(points.device), self.right.to(points.device)
        there = len(bank) - (leave_out is not None)
        found = []
        for start in range(0, len(points), _CHUNK):
            part = points[start : start + _CHUNK]
            # Without matrix products: with them, who is nearest would depend on the inputs beside it.
            distance = torch.cdist(part, bank, compute_mode="donot_use_mm_for_euclid_dist")
            if leave_out is not None:
                distance.scatter_(1, leave_out[start : start + _CHUNK, None], torch.inf)
            nearest = distance.sort(dim=1, stable=True).indices[:, : min(neighbours, there)]
            found.append(right[nearest])
        return torch.cat(found) if found else right.new_zeros(0, min(neighbours, there), right.shape[1])


class DynamicSelectionPredictor:
    """Shares of the votes of those versions that were right on the calibration inputs most similar to this one.

    Similar are inputs on which all versions together hold similar classes probable (Euclidean distance of their
    calibrated softmaxes). Of a version's right answers on the nearest inputs come its votes:

    =======  ==========================================================================================
    method   votes
    =======  ==========================================================================================
    ola      1 for the version that was right most often, of equals the first (Woods et al., 1997)
    knora_u  as many as it was right on (Ko, Sabourin and Britto, 2008: union)
    knora_e  1 for each that was right on all of them; if none was, on all but the furthest, and so on
             (Ko, Sabourin and Britto, 2008: eliminate)
    des_p    1 for each that was right on a larger share than chance, 1 / K (Woloszynski et al., 2012)
    =======  ==========================================================================================

    Versions that do not answer an input, or with logits that are not finite, have no vote on it; where nobody else has
    one, every version that answers has one; where nobody answers, all classes are equally probable. Where votes tie,
    class probabilities do. A version that did not answer a calibration input was not right on it.

    The share s of a class's votes becomes its probability by (s + 1/(K k)) to a power, made to sum to 1, with k
    neighbours: the power has the smallest log loss on (at most 2000) calibration inputs, each voted on without itself.
    No class has a probability below 1 / (K (M + 2)) for M calibration inputs.

    Args:
        method: who votes.
        neighbours: k >= 1, fewer where there are fewer calibration inputs.

    Attributes:
        softmax_: of the N versions.
        bank_: the calibration inputs.
        power_: of the vote shares, > 0.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"logits"})
    judges_alone: ClassVar[bool] = False

    def __init__(self, method: SelectionMethod = "knora_u", neighbours: int = 7) -> None:
        if method not in get_args(SelectionMethod):
            raise ConfigurationError(f"method must be one of {', '.join(get_args(SelectionMethod))}, got {method!r}")
        if neighbours < 1:
            raise ConfigurationError(f"neighbours must be >= 1, got {neighbours}")
        self.method: SelectionMethod = method
        self.neighbours = neighbours
        self.softmax_: CalibratedSoftmax | None = None
        self.bank_: Bank | None = None
        self.power_ = 1.0

    def fit(self, evidence: Evidence, truth: Tensor) -> Self:
        """Learn from calibration evidence with logits and the true classes (B,) int64."""
        correct = check_calibration(evidence, truth)
        self.softmax_ = CalibratedSoftmax.fit(evidence, truth)
        self.bank_ = Bank(_points(self.softmax_, evidence), correct & evidence.answered)
        self.power_ = 1.0
        if len(truth) > 1:
            rows = torch.randperm(len(truth), generator=generator(0, "dynamic selection"))[:_TRIED]
            rows = rows.to(evidence.labels.device)
            logs = self._log_shares(self.softmax_, self.bank_, evidence[rows], rows)
            self.power_ = fit_sharpness(logs, truth.to(rows.device)[rows])
        return self

    def class_probability(self, evidence: Evidence) -> Tensor:
        """P(truth is class k | evidence), (B, K) float64."""
        softmax, bank = check_fitted(self, self.softmax_), check_fitted(self, self.bank_)
        check_evidence(evidence, len(softmax.sharpness))
        return smoothed((self._log_shares(softmax, bank, evidence, None) * self.power_).softmax(1), softmax.inputs)

    def failure_probability(self, evidence: Evidence) -> Tensor:
        """P(version's answer is wrong | evidence of all), (B, N) float64 in [0, 1]; 1 where there is no answer."""
        return failure_of(self.class_probability(evidence), evidence)

    def state(self) -> dict[str, Tensor]:
        """What was learned, as named tensors."""
        softmax, bank = check_fitted(self, self.softmax_), check_fitted(self, self.bank_)
        power = torch.tensor(self.power_, dtype=torch.float64)
        return {**softmax.state(), "points": bank.points, "right": bank.right, "power": power}

    def with_state(self, state: dict[str, Tensor]) -> Self:
        """Take back what `state` returned; returns itself."""
        check_state(self, state, (*CalibratedSoftmax.STATE, "points", "right", "power"))
        self.softmax_ = CalibratedSoftmax.from_state(state)
        self.bank_, self.power_ = Bank(state["points"], state["right"]), float(state["power"])
        return self

    def _log_shares(
        self, softmax: CalibratedSoftmax, bank: Bank, evidence: Evidence, leave_out: Tensor | None
    ) -> Tensor:
        right = bank.right_nearby(_points(softmax, evidence), self.neighbours, leave_out)
        votes = selection_votes(self.method, right, heard(evidence), softmax.classes)
        counted = votes.new_zeros(len(votes), softmax.classes)
        counted.scatter_add_(1, evidence.labels.clamp_min(0), votes)
        share = counted / counted.sum(1, keepdim=True).clamp_min(1.0)
        return (share + 1 / (softmax.classes * self.neighbours)).log()


def selection_votes(method: SelectionMethod, right: Tensor, has_say: Tensor, classes: int) -> Tensor:
    """How many votes each version has, by the table of `DynamicSelectionPredictor`: (B, N) float64 >= 0.

    Args:
        method: who votes.
        right: (B, k, N) bool, right on the k most similar inputs, the most similar first.
        has_say: (B, N) bool; the others have no vote.
        classes: K.

    >>> right = torch.tensor([[[True, True, False], [True, False, True]]])
    >>> everybody = torch.ones(1, 3, dtype=torch.bool)
    >>> [selection_votes(method, right, everybody, 2).tolist() for method in ("ola", "knora_u", "knora_e")]
    [[[1.0, 0.0, 0.0]], [[2.0, 1.0, 1.0]], [[1.0, 0.0, 0.0]]]
    """
    in_a_row = right.long().cumprod(1).sum(1)  # from the nearest on
    competence = torch.where(has_say, in_a_row if method == "knora_e" else right.sum(1), -1)
    if method == "ola":
        votes = torch.zeros_like(competence).scatter(1, competence.argmax(1, keepdim=True), 1)
    elif method == "knora_u":
        votes = competence
    elif method == "knora_e":
        votes = (competence == competence.amax(1, keepdim=True)).long()
    else:
        votes = (competence * classes > right.shape[1]).long()
    votes = votes * has_say
    nobody = votes.sum(1, keepdim=True) == 0
    return torch.where(nobody, has_say, votes).double()


def _points(softmax: CalibratedSoftmax, evidence: Evidence) -> Tensor:
    return softmax.log_probability(evidence).exp().flatten(1).float()
