"""How busy the machine is with others: figures of a shared machine mean little."""

import time
from collections.abc import Callable

import psutil  # type: ignore[import-untyped]

__all__ = ["Others", "busy_seconds"]


def busy_seconds() -> float:
    """Processor time that all cores together spent on anything since the machine started."""
    times = psutil.cpu_times()
    waiting = times.idle + getattr(times, "iowait", 0.0)
    counted_twice = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # a part of user and nice
    return float(sum(times) - waiting - counted_twice)


class Others:
    """Tells how much of the machine others took since this was made.

    Args:
        own: seconds of processor time that what is measured has used so far.
    """

    def __init__(self, own: Callable[[], float]) -> None:
        self.own = own
        self._busy, self._used, self._start = busy_seconds(), own(), time.perf_counter()

    def cores(self) -> float:
        """Cores that others kept busy, on average; what the system does for us counts as theirs."""
        took = time.perf_counter() - self._start
        return max(0.0, (busy_seconds() - self._busy - (self.own() - self._used)) / took)
