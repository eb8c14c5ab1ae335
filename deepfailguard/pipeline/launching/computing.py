"""All work through one launcher, with one progress bar, and with one error in the end."""

from collections.abc import Iterator
from contextlib import closing

from deepfailguard.errors import VersionError
from deepfailguard.pipeline.launching.base import Launcher, Outcome
from deepfailguard.pipeline.launching.work import Work
from deepfailguard.progress import track

__all__ = ["compute"]


def compute(work: Work, launcher: Launcher) -> None:
    """Get the work done and show how far along it is.

    Raises:
        VersionError: units were given up; it names versions and inputs. All others are in the cache.
    """
    failures: list[Outcome] = []
    if work.units:
        for _ in track(_chunks(work, launcher, failures), work.chunks, "boundary distances"):
            pass
    if failures:
        raise VersionError(_describe(work, failures)) from failures[0].cause


def _chunks(work: Work, launcher: Launcher, failures: list[Outcome]) -> Iterator[None]:
    """One item per finished chunk."""
    with closing(launcher.run(work)) as outcomes:
        for outcome in outcomes:
            if outcome.error is not None:
                failures.append(outcome)
            else:
                yield from [None] * outcome.unit.chunks


def _describe(work: Work, failures: list[Outcome]) -> str:
    lines = [f"\n  {work.describe(outcome.unit)}: {outcome.error}" for outcome in failures]
    return (
        f"boundary distances of {len(failures)} of {len(work.jobs)} versions could not be computed; all others are in "
        f"{work.site.cache}. Mend what is named here and run it again, only what is missing will be computed:"
        + "".join(lines)
    )
