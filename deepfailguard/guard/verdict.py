"""What a guard answers for a batch, and why, in words."""

from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

from deepfailguard.types import NO_ANSWER

__all__ = ["FaultKind", "Ground", "Verdict", "VersionHealth", "VersionState"]

FaultKind = Literal[
    "exception",
    "timeout",
    "process died",
    "not finite",
    "wrong output",
    "stuck output",
    "weights changed",
    "canary failed",
    "memory growth",
]
"""What a version can be caught at while it serves; see `deepfailguard.runtime`."""

VersionState = Literal["serving", "suspended", "quarantined", "shadow"]
"""How a version stands: its answers count; it is left out until it is healthy again; it is left out until somebody
releases it; it is asked, but its answers never count."""

Ground = Literal["all versions", "versions left", "silent versions", "too few versions", "fallback"]
"""What a verdict rests on: every version; a decision derived for those that are left; the decision for all, to which
those that are missing have said nothing; fewer versions than must answer, so that it abstains; no version at all."""

_State = Literal[
    "answered",
    "without an answer",
    "without an answer, or not asked",
    "not asked",
    "in quarantine",
    "suspended",
    "in shadow",
]
_NOT_ASKED: Final[tuple[_State, ...]] = ("not asked", "in quarantine", "suspended", "in shadow")
_LEFT_OUT: Final[dict[VersionState, _State]] = {
    "quarantined": "in quarantine",
    "suspended": "suspended",
    "shadow": "in shadow",
}
_SILENT: Final[dict[_State, str]] = {
    "without an answer": "gave no answer: ",
    "without an answer, or not asked": "gave no answer, or was not asked: ",
    "not asked": "was not asked: the answer was sure enough without it",
    "in quarantine": "does not count: ",
    "suspended": "does not count: ",
    "in shadow": "is tried beside the others and does not count",
}


@dataclass(frozen=True, slots=True)
class VersionHealth:
    """How one version did in one batch.

    Attributes:
        name: the version's name.
        answered: how many inputs it answered.
        asked: how many inputs it was asked.
        problem: what went wrong, empty if nothing did.
        fault: what kind of fault that was; None if there was none, or none that belongs to a kind.
        state: how the version stands.
    """

    name: str
    answered: int
    asked: int
    problem: str = ""
    fault: FaultKind | None = None
    state: VersionState = "serving"

    @property
    def healthy(self) -> bool:
        """Whether it answered every input and nothing else was wrong, or is not meant to count."""
        return self.state == "shadow" or (self.state == "serving" and self.answered == self.asked and not self.problem)


@dataclass(frozen=True, slots=True, repr=False)
class Verdict:
    """The guard's answers for a batch of B inputs by N versions over K classes.

    Attributes:
        labels: (B,) int64 in [-1, K); -1 where no version could answer.
        failure_probability: (B,) float64 in [0, 1] that the answer is wrong.
        abstained: (B,) bool, whether the guard declines to answer for its label.
        weights: (B, N) float64, what each version contributed.
        probabilities: (B, K) float64, what the predictor tells of the classes, or else the weighted mean of the
            versions' softmax outputs; rows sum to 1 (to 0 where the label is -1).
        version_labels: (B, N) int64, each version's answer, -1 for none.
        version_failure_probability: (B, N) float64 in [0, 1].
        distance: (B, N) float32, boundary distances.
        found: (B, N) bool, whether the distance's search crossed the boundary.
        health: how each version did.
        problems: what is wrong with an input, by its position in the batch.
        classes: K class names.
        measured: whether boundary distances were asked for.
        ground: what the answers rest on.
    """

    labels: Tensor
    failure_probability: Tensor
    abstained: Tensor
    weights: Tensor
    probabilities: Tensor
    version_labels: Tensor
    version_failure_probability: Tensor
    distance: Tensor
    found: Tensor
    health: tuple[VersionHealth, ...]
    problems: dict[int, str]
    classes: tuple[str, ...]
    measured: bool = True
    ground: Ground = "all versions"

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def degraded(self) -> bool:
        """Whether a version failed on an input that it was asked, or told less of it, or is in quarantine."""
        return not all(health.healthy for health in self.health)

    def class_name(self, label: int) -> str:
        """A label's name; "no answer" for -1."""
        return "no answer" if label == NO_ANSWER else self.classes[label]

    def __repr__(self) -> str:
        failing = [health.name for health in self.health if not health.healthy]
        return (
            f"Verdict on {len(self)} inputs: labels {_short(self.labels)}, failure probability "
            f"{_short(self.failure_probability)}, {int(self.abstained.sum())} abstained"
            + (f", failing versions: {', '.join(failing)}" if failing else "")
        )

    def explain(self, position: int) -> str:
        """The answer to one input in words: what, how sure, and what each version said and why it counted."""
        if position in self.problems:
            return f"Input {position} was not judged: {self.problems[position]}."
        if self.ground == "fallback" and int(self.labels[position]) != NO_ANSWER:
            return (
                f"Input {position}: no version answered; the answer is the declared fallback, {self._name(position)!r}."
            )
        lines = [self._headline(position)]
        order = torch.argsort(self.weights[position], descending=True, stable=True).tolist()
        return "\n".join(lines + [self._version_line(position, version) for version in order])

    def _name(self, position: int) -> str:
        return self.class_name(int(self.labels[position]))

    def _headline(self, position: int) -> str:
        label, states = int(self.labels[position]), [self._state(position, n) for n in range(len(self.health))]
        silent = [f"{states.count(state)} {state}" for state in _NOT_ASKED if state in states]
        others = f" ({', '.join(silent)})" if silent else ""
        if label == NO_ANSWER:
            return f"Input {position}: no version answered, so the guard abstains{others}."
        answer = f"{self.class_name(label)!r}, wrong with probability {_percent(self.failure_probability[position])}"
        agree = int((self.version_labels[position] == label).sum())
        asked = sum(state not in _NOT_ASKED for state in states)
        start = (
            f"Input {position}: the guard abstains; its best guess is"
            if self.abstained[position]
            else (f"Input {position}: the answer is")
        )
        why = "" if agree else "; what they show together, sure or not, speaks for it all the same"
        return f"{start} {answer}. {agree} of {asked} versions gave it{others}{why}."

    def _state(self, position: int, version: int) -> _State:
        """How a version stands to a judged input.

        Of a cascade's version that failed on some of the inputs that it was asked, nobody knows whether this is one of
        them, unless a later version answered: a cascade asks in the versions' order.
        """
        health, later = self.health[version], self.version_labels[position, version:] != NO_ANSWER
        if later[0]:
            return "answered"
        if health.state != "serving" and not health.asked:
            return _LEFT_OUT[health.state]
        if health.answered == health.asked:
            return "not asked"
        all_asked = health.asked >= len(self) - len(self.problems)
        return "without an answer" if all_asked or bool(later.any()) else "without an answer, or not asked"

    def _version_line(self, position: int, version: int) -> str:
        health, label = self.health[version], int(self.version_labels[position, version])
        if label == NO_ANSWER:
            state = self._state(position, version)
            return f"  - {health.name} {_SILENT[state]}{'' if state in ('not asked', 'in shadow') else health.problem}"
        distance = float(self.distance[position, version])
        nearest = (
            f"a change of {distance:.3g} flips it; "
            if self.found[position, version]
            else "no change was found to flip it; "
        )
        return (
            f"  - {health.name} said {self.class_name(label)!r} "
            f"with weight {float(self.weights[position, version]):.2f}: "
            f"{nearest if self.measured else ''}such an answer of this version is wrong with probability "
            f"{_percent(self.version_failure_probability[position, version])}"
        )


def _percent(probability: Tensor) -> str:
    """A probability in words that claims no more than a density's tail can tell."""
    value = float(probability)
    return "below 0.1%" if value < 0.001 else f"{value:.1%}"


def _short(values: Tensor) -> str:
    shown = ", ".join(f"{value:.3g}" for value in values[:5].tolist())
    return f"[{shown}{', ...' if len(values) > 5 else ''}]"
