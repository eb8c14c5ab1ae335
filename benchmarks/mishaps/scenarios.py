"""The catalogue of faults: what is done, to how many versions, and how soon it must be noticed."""

from dataclasses import dataclass, field
from typing import Any, Final, Literal

from benchmarks.mishaps.injecting import Flip, FlipInside, Injection, Kill, Overwrite, SpoilFile, Stop, Turn
from deepfailguard.runtime.housing import Isolation

__all__ = ["REFUSED", "SCENARIOS", "Group", "Promise", "Scenario"]

Group = Literal["in process", "on disk", "pairs", "processes"]

_SLOW: Final = 2.0  # seconds, beyond every deadline of the load; the versions usually take one to ten milliseconds
_CANARY: Final[dict[str, Any]] = {"canary_every": 0.1}
_PATIENT: Final[dict[str, Any]] = {"pardons": 100}
_SMALL: Final[dict[str, Any]] = {"memory_growth": 128 << 20}


@dataclass(frozen=True, slots=True)
class Promise:
    """How soon a fault must be noticed.

    Attributes:
        text: for people.
        requests: how many requests that were made after the injection may count the version's answers; None if it is a
            matter of seconds.
        seconds: from the injection to the end of the first request that is answered without the version; None if it
            is a matter of requests.
        rotations: rounds of the comparison of weights, as measured, that come on top.
    """

    text: str
    requests: int | None = None
    seconds: float | None = None
    rotations: float = 0.0


SAME: Final = Promise("same batch", requests=0)
NEXT: Final = Promise("two batches", requests=1)
DEADLINE: Final = Promise("its share of the deadline", requests=0)
CANARY: Final = Promise("canary period 0.1 s, + 0.9 s", seconds=1.0)
ROTATION: Final = Promise("three rounds of checksums, + 1 s", seconds=1.0, rotations=3.0)
MEMORY: Final = Promise("memory check each 1 s, + 1.5 s", seconds=2.5)
FIVE: Final = Promise("some rounds of checksums", seconds=5.0)
REFUSED: Final = Promise("when it is loaded", seconds=5.0)


@dataclass(frozen=True, slots=True)
class Scenario:
    """A class of faults.

    Attributes:
        name: of the class, unique.
        group: of classes.
        kinds: what may be done; each version that is hit gets one of them, drawn.
        promise: how soon it must be noticed; None where nothing is expected to notice it.
        victims: versions that are hit at once; 0 for all.
        hold: seconds that the fault lasts on after it was noticed, at most; drawn.
        settings: of the runtime, where they differ from the campaign's.
        share: of the campaign's trials that are made, for classes that nothing notices.
    """

    name: str
    group: Group
    kinds: tuple[Injection, ...]
    promise: Promise | None
    victims: int = 1
    hold: float = 0.1
    settings: dict[str, Any] = field(default_factory=dict)
    share: float = 1.0

    @property
    def isolation(self) -> Isolation:
        """Where the versions run."""
        return "processes" if self.group == "processes" else "in process"


_SIMPLE: Final = (
    Turn("raise"),
    Turn("nan"),
    Turn("inf"),
    Turn("no batch dimension"),
    Turn("extra row"),
    Turn("wrong classes"),
    Turn("integers"),
    Turn("no tensor"),
)

_IN_PROCESS: Final = (
    Scenario("raises", "in process", (Turn("raise"),), SAME),
    Scenario("raises on one input", "in process", (Turn("raise on one", one=True),), SAME, settings=_PATIENT),
    Scenario("hangs", "in process", (Turn("hang"),), DEADLINE),
    Scenario("slow", "in process", (Turn("slow", _SLOW),), DEADLINE),
    Scenario("NaN", "in process", (Turn("nan"),), SAME),
    Scenario("NaN for one input", "in process", (Turn("nan in one", one=True),), SAME, settings=_PATIENT),
    Scenario("infinite", "in process", (Turn("inf"),), SAME),
    Scenario("no batch dimension", "in process", (Turn("no batch dimension"),), SAME),
    Scenario("a row too many", "in process", (Turn("extra row"),), SAME),
    Scenario("a class too few", "in process", (Turn("wrong classes"),), SAME),
    Scenario("integers", "in process", (Turn("integers"),), SAME),
    Scenario("no tensor", "in process", (Turn("no tensor"),), SAME),
    Scenario("constant output", "in process", (Turn("constant"),), NEXT),
    Scenario("last batch again", "in process", (Turn("stale"),), NEXT),
    Scenario("one bit flipped", "in process", (Flip(1),), ROTATION, hold=0.0),
    Scenario("ten bits flipped", "in process", (Flip(10),), ROTATION, hold=0.0),
    Scenario("weights overwritten", "in process", (Overwrite(),), ROTATION, hold=0.0),
    Scenario("logits three times as large", "in process", (Turn("scaled"),), CANARY, settings=_CANARY),
    Scenario("class order permuted", "in process", (Turn("permuted"),), CANARY, settings=_CANARY),
    Scenario(
        "permuted but for canary inputs",
        "in process",
        (Turn("imitating", canary=True),),
        None,
        settings=_CANARY,
        share=0.1,
    ),
)

_ON_DISK: Final = tuple(
    Scenario(f"repair from a file: {way}", "on disk", (SpoilFile(way),), REFUSED, hold=0.3)
    for way in ("flipped bit", "truncated", "missing", "pickle", "other numbers")
)

_PAIRS: Final = (
    Scenario("two versions, quick kinds", "pairs", _SIMPLE, SAME, victims=2),
    Scenario(
        "two versions, raising or hanging",
        "pairs",
        (*_SIMPLE[:1], Turn("hang"), Turn("hang")),
        DEADLINE,
        victims=2,
        hold=0.0,
    ),
    Scenario("all versions at once", "pairs", _SIMPLE, SAME, victims=0),
)

_PROCESSES: Final = (
    Scenario("poisoned in its process", "processes", _SIMPLE, SAME),
    Scenario("one bit flipped in its process", "processes", (FlipInside(),), FIVE, hold=0.0),
    Scenario("killed while idle", "processes", (Kill(answering=False),), SAME, hold=0.0),
    Scenario("killed in an answer", "processes", (Kill(answering=True),), SAME, hold=0.0),
    Scenario("ends itself", "processes", (Turn("exit"),), SAME),
    Scenario("segmentation fault", "processes", (Turn("segfault"),), SAME),
    Scenario("stopped", "processes", (Stop(),), DEADLINE, hold=0.0),
    Scenario("hangs with the global lock", "processes", (Turn("hold lock"),), DEADLINE, hold=0.0),
    Scenario("memory grows", "processes", (Turn("allocate"),), MEMORY, hold=0.0, settings=_SMALL),
    Scenario("garbage on the line", "processes", (Turn("garble"),), SAME),
    Scenario("two processes killed", "processes", (Kill(answering=False), Turn("exit")), SAME, victims=2, hold=0.0),
)

SCENARIOS: Final = (*_IN_PROCESS, *_ON_DISK, *_PAIRS, *_PROCESSES)
"""All classes, those that take processes last."""
