"""Which versions answer together."""

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.decisions.pools import Member
from deepfailguard.seeding import derive_seed

__all__ = ["SETTINGS", "Ensemble", "choose"]

SETTINGS: Final = ("sound", "same fault", "one faulty", "mixed")
_DRAWS: Final = 20  # times as many as are wanted: enough to have that many different ones
_LISTED: Final = 100_000  # so many possible ensembles at most are listed one by one


@dataclass(frozen=True, slots=True)
class Ensemble:
    """Versions that answer together.

    Attributes:
        setting: one of `SETTINGS`.
        members: positions in the pool, ascending.
    """

    setting: str
    members: tuple[int, ...]


def choose(members: Sequence[Member], versions: int, most: int, seed: int) -> list[Ensemble]:
    """Ensembles of every setting; no two have the same members.

    Where a sound and a faulty version answer together in "one faulty", they are of different families.

    Args:
        members: the pool.
        versions: how many answer together.
        most: ensembles of each setting at most; which ones depends on the seed.
        seed: of the draw.

    >>> pool = [Member(family, fault) for fault in (None, "noise") for family in ("A", "B", "C")]
    >>> [len([e for e in choose(pool, 2, 5, seed=0) if e.setting == setting]) for setting in SETTINGS]
    [3, 3, 5, 4]
    """
    draw = random.Random(derive_seed(seed, "ensembles", versions))
    chosen: list[Ensemble] = []
    taken: set[tuple[int, ...]] = set()
    for setting, possible in _possible(members, versions, most, draw):
        fresh = [each for each in dict.fromkeys(possible) if each not in taken]
        picked = draw.sample(fresh, min(most, len(fresh)))
        taken.update(picked)
        chosen += [Ensemble(setting, each) for each in picked]
    return chosen


def _possible(
    members: Sequence[Member], versions: int, most: int, draw: random.Random
) -> Iterator[tuple[str, list[tuple[int, ...]]]]:
    faults = list(dict.fromkeys(member.fault for member in members if member.fault))
    groups = {fault: [i for i, member in enumerate(members) if member.fault == fault] for fault in (None, *faults)}
    sound = groups[None]
    yield "sound", list(itertools.combinations(sound, versions))
    yield "same fault", [each for fault in faults for each in itertools.combinations(groups[fault], versions)]
    yield "one faulty", [each for fault in faults for bad in groups[fault] for each in _beside(bad, members, versions)]
    yield "mixed", _any(len(members), versions, most, draw)


def _beside(bad: int, members: Sequence[Member], versions: int) -> list[tuple[int, ...]]:
    others = [i for i, m in enumerate(members) if m.fault is None and m.family != members[bad].family]
    return [tuple(sorted((bad, *each))) for each in itertools.combinations(others, versions - 1)]


def _any(count: int, versions: int, most: int, draw: random.Random) -> list[tuple[int, ...]]:
    if math.comb(count, versions) <= _LISTED:
        return list(itertools.combinations(range(count), versions))
    return [tuple(sorted(draw.sample(range(count), versions))) for _ in range(_DRAWS * most)]
