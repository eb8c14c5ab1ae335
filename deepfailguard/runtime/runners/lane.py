"""A thread that takes one job after the other, and can be taken off one that never ends."""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from functools import partial
from typing import Any, Generic, TypeVar

from deepfailguard.errors import VersionLostError

__all__ = ["Job", "Lane"]

T = TypeVar("T")


class Job(Generic[T]):
    """Something to do.

    Args:
        owner: for whom.
        work: what.
        patient: whether it lets others pass: see `Lane`.

    Attributes:
        future: tells how it ends.
        under_way: whether it waits or runs, be it that it was left alone.
    """

    def __init__(self, owner: object, work: Callable[[], T], patient: bool = False) -> None:
        self.owner = owner
        self.work = work
        self.patient = patient
        self.future: Future[T] = Future()
        self.under_way = True

    def compute(self) -> Callable[[], None]:
        """Do it; what is returned tells it to those who wait."""
        try:
            result = self.work()
        except BaseException as error:  # nothing may end the thread, and those who wait must know
            return partial(self.future.set_exception, error)
        return partial(self.future.set_result, result)

    def fail(self, error: Exception) -> None:
        """Tell those who wait, if nothing was told yet."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)


class Lane:
    """One daemon thread for all jobs of some owners: jobs that compute would fight over the cores.

    A job cannot be ended from outside. It can be left alone: its thread goes on with it and with nothing else, and
    the jobs that wait get another thread. A job that holds Python's global lock for ever stops everything all the
    same: only a process of its own helps against that.

    Of patient jobs at most one is done between two others, so that none waits for more than one of them, and all
    have their turn.

    Args:
        name: of its threads.
        lasting: whether the thread stays when nothing is to be done.
    """

    def __init__(self, name: str = "deepfailguard lane", lasting: bool = True) -> None:
        self.name = name
        self.lasting = lasting
        self._changed = threading.Condition()  # its lock may be taken again by who has it
        self._waiting: deque[Job[Any]] = deque()
        self._patient: deque[Job[Any]] = deque()
        self._now: Job[Any] | None = None
        self._thread: threading.Thread | None = None
        self._was_patient = False
        self._closed = False

    def submit(self, owner: object, work: Callable[[], T], patient: bool = False) -> "Future[T]":
        """Do something when its turn has come. Where the lane was closed the future fails with `VersionLostError`."""
        job = Job(owner, work, patient)
        with self._changed:
            if not self._closed:
                (self._patient if patient else self._waiting).append(job)
                self._hire()
                self._changed.notify_all()
                return job.future
        job.fail(VersionLostError(f"{self.name} was closed, and runs nothing any more"))
        return job.future

    def running(self, owner: object) -> Job[Any] | None:
        """The job that runs, if it is this owner's."""
        job = self._now
        return job if job is not None and job.owner is owner else None

    def waiting(self, owner: object) -> bool:
        """Whether a job of this owner waits here."""
        with self._changed:
            jobs = (*self._waiting, *self._patient)
            return any(job.owner is owner and not job.future.cancelled() for job in jobs)

    def holds(self, owner: object) -> bool:
        """Whether a job of this owner waits or runs here; those that were left alone do not count."""
        with self._changed:
            return self.running(owner) is not None or self.waiting(owner)

    def leave(self, owner: object) -> Job[Any] | None:
        """Leave the job that runs alone if it is this owner's, and go on with those that wait."""
        with self._changed:
            job = self._now
            if job is None or job.owner is not owner:
                return None
            self._now, self._thread = None, None
            if self._waiting or self._patient:
                self._hire()
            return job

    def drop(self, owner: object, error: Exception) -> None:
        """Fail this owner's jobs that wait."""
        with self._changed:
            dropped = [job for job in (*self._waiting, *self._patient) if job.owner is owner]
            self._waiting = deque(job for job in self._waiting if job.owner is not owner)
            self._patient = deque(job for job in self._patient if job.owner is not owner)
        for job in dropped:
            job.under_way = False
            if job.future.set_running_or_notify_cancel():
                job.fail(error)

    def close(self, seconds: float = 0.0) -> None:
        """Take no more jobs; the thread ends after those that wait, and is waited for so long."""
        with self._changed:
            self._closed = True
            thread = self._thread
            self._changed.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join(seconds)

    def _hire(self) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._work, name=self.name, daemon=True)
            thread.start()
            self._thread = thread

    def _work(self) -> None:
        while self._turn():
            pass  # a job's images must not be kept until the next one comes

    def _turn(self) -> bool:
        """Wait for a job and do it; False if there is no more to do."""
        job = self._next()
        if job is None:
            return False
        tell = job.compute()
        self._end(job)  # before it is told: whoever sees the answer finds the lane free
        with suppress(InvalidStateError):  # nobody waits any more
            tell()
        return True

    def _next(self) -> Job[Any] | None:
        """The next job; None if this thread has no more to do."""
        with self._changed:
            while self._thread is threading.current_thread():
                job = self._take()
                if job is not None:
                    self._now = job
                    return job
                if self._closed or not self.lasting:
                    self._thread = None
                    return None
                self._changed.wait()
        return None

    def _take(self) -> Job[Any] | None:
        while self._waiting or self._patient:
            patient = bool(self._patient) and (not self._waiting or not self._was_patient)
            job = (self._patient if patient else self._waiting).popleft()
            self._was_patient = patient
            if job.future.set_running_or_notify_cancel():
                return job
            job.under_way = False
        return None

    def _end(self, job: Job[Any]) -> None:
        with self._changed:
            job.under_way = False
            if self._now is job:
                self._now = None
