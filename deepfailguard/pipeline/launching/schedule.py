"""Which unit is next, which must wait, and when a version is given up."""

from collections import Counter, deque
from collections.abc import Sequence
from itertools import groupby

from deepfailguard.pipeline.launching.base import Outcome
from deepfailguard.pipeline.launching.work import Unit

__all__ = ["Schedule"]


class _Queue:
    """Units of one version, wave after wave."""

    def __init__(self, units: Sequence[Unit]) -> None:
        self.waves = deque(deque(wave) for _, wave in groupby(units, key=lambda unit: unit.wave))
        self.running = 0

    def take(self) -> Unit | None:
        while self.waves and not self.waves[0] and self.running == 0:
            self.waves.popleft()
        if not self.waves or not self.waves[0]:
            return None
        self.running += 1
        return self.waves[0].popleft()

    @property
    def over(self) -> bool:
        return self.running == 0 and not any(self.waves)


class Schedule:
    """Hands out units in order and takes back what became of them.

    Args:
        units: ordered by version and wave.
        retries: how often a unit that failed is tried again (>= 0) before its version is given up.

    Example:
        >>> schedule = Schedule([Unit(0, "test", 0, 8, chunks=1)], retries=0)
        >>> unit = schedule.next()
        >>> schedule.settle(unit, "out of memory").error
        'out of memory'
        >>> schedule.over
        True
    """

    def __init__(self, units: Sequence[Unit], retries: int) -> None:
        self.retries = retries
        self._queues = {job: _Queue(list(group)) for job, group in groupby(units, key=lambda unit: unit.job)}
        self._failures: Counter[Unit] = Counter()
        self._given_up: set[int] = set()

    @property
    def over(self) -> bool:
        """Whether no unit waits or runs."""
        return all(queue.over for queue in self._queues.values())

    def next(self, loaded: int | None = None) -> Unit | None:
        """A unit that may start now; None if there is none.

        Args:
            loaded: the version that the worker has loaded already: its units come first.
        """
        first = [self._queues[loaded]] if loaded in self._queues else []
        for queue in (*first, *self._queues.values()):
            unit = queue.take()
            if unit is not None:
                return unit
        return None

    def settle(self, unit: Unit, error: str | None) -> Outcome | None:
        """What became of a unit that was handed out; None if it will be tried again or no longer matters."""
        queue = self._queues[unit.job]
        queue.running -= 1
        if error is None:
            return Outcome(unit)
        if unit.job in self._given_up:
            return None
        self._failures[unit] += 1
        if self._failures[unit] <= self.retries:
            queue.waves[0].appendleft(unit)
            return None
        self._given_up.add(unit.job)
        queue.waves.clear()
        tries = f" (tried {self._failures[unit]} times)" if self.retries else ""
        return Outcome(unit, f"{error}{tries}")
