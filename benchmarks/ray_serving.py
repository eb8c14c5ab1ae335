"""A guard on Ray Serve under load while replicas die, a version hangs, a whole version dies, and a machine is lost.

    python benchmarks/ray_serving.py [--quick] [--json PATH]

A Ray of two nodes, both on this machine; three small versions with a replica on each node; clients ask over HTTP all
the time. Each answer is compared with what the same versions say in one process. docs/scale.md explains the figures.
"""

import argparse
import logging
import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `benchmarks` is found

import httpx
import numpy as np
import psutil  # type: ignore[import-untyped]

from benchmarks.ray_chaos.load import Asked, Load
from benchmarks.ray_chaos.versions import NAMES, images_of, saved_guard
from benchmarks.reporting import Bar, aligned, as_json, bar_lines, say, write_json
from deepfailguard.runtime.runners.ray_replica import ReplicaSettings
from deepfailguard.runtime.settings import Settings
from deepfailguard.serving.ray_app import RayGuard, deployed
from deepfailguard.serving.settings import Listening, ServerSettings

ROOT: Final = Path(__file__).resolve().parents[1]
NODE: Final[dict[str, Any]] = {"num_cpus": 8, "include_dashboard": False, "object_store_memory": 200_000_000}
ENVIRONMENT: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "OMP_NUM_THREADS": "1",
}
BATCH, DEADLINE, HANG, LONGEST = 4, 0.8, 3.0, 120.0
WARM_UP: Final = "warming up"
EVERYBODY: Final = tuple(range(len(NAMES)))


@dataclass(frozen=True, slots=True)
class Phase:
    """What clients got while something went on.

    Attributes:
        name: what went on.
        requests: how many were sent.
        failed: without an answer.
        wrong: inputs with a wrong answer of a version or of the guard.
        degraded: answers that rested on fewer than all versions.
        unanswered: answers without any version.
        p50: seconds.
        p99: seconds.
    """

    name: str
    requests: int
    failed: int
    wrong: int
    degraded: int
    unanswered: int
    p50: float
    p99: float

    @classmethod
    def of(cls, name: str, asked: Sequence[Asked]) -> "Phase":
        """Sum up some requests."""
        seconds = [each.seconds for each in asked if not each.failure] or [float("nan")]
        return cls(
            name=name,
            requests=len(asked),
            failed=sum(bool(each.failure) for each in asked),
            wrong=sum(each.wrong for each in asked),
            degraded=sum(not each.failure and each.answered != EVERYBODY for each in asked),
            unanswered=sum(not each.failure and not each.answered for each in asked),
            p50=float(np.quantile(seconds, 0.5)),
            p99=float(np.quantile(seconds, 0.99)),
        )


class Trouble:
    """Makes trouble, one kind after the other, and notes what the clients got meanwhile.

    Args:
        load: asks all the time.
        orders: folder of the files that let a version hang.
        seconds: that a phase takes.
    """

    def __init__(self, load: Load, orders: Path, seconds: float) -> None:
        self.load = load
        self.orders = orders
        self.seconds = seconds
        self.spans: list[tuple[str, float, float]] = []
        self.times: dict[str, float] = {}
        self.noticed: list[tuple[str, str]] = []
        self._told = ""

    def warm_up(self) -> None:
        """Until all versions answer; what fails here is told, and held against nobody."""

        def wait() -> None:
            self.times["warm after"] = self.load.wait_for(EVERYBODY, time.monotonic(), times=20, most=LONGEST)

        self._during(WARM_UP, wait)

    def quiet(self, name: str) -> None:
        """Nothing happens."""
        self._during(name, lambda: time.sleep(self.seconds))

    def replicas_die(self) -> None:
        """Every few seconds one of a version's two replicas is killed, of each version in turn."""

        def kill() -> None:
            draw = random.Random(0)
            for column in EVERYBODY:
                pids = sorted(replicas_of(column))
                os.kill(draw.choice(pids), signal.SIGKILL)
                time.sleep(self.seconds / len(NAMES))
                self._all_there()

        self._during("single replicas are killed", kill)

    def version_hangs(self) -> None:
        """Each replica of a version hangs, also those that are started anew, until the cause is gone."""
        start, left = time.monotonic(), EVERYBODY[:1] + EVERYBODY[2:]
        stop = self.orders / NAMES[1]

        def hang() -> None:
            stop.touch()
            self.times["hung: left out after"] = self.load.wait_for(left, start, times=3, most=LONGEST)

        self._during("a version hangs: until it is left out", hang)
        self._during("a version hangs: it is left out", lambda: time.sleep(self.seconds))
        self._during("a version hangs: the cause is gone", lambda: self._heal(stop, "hung: back after"))

    def version_dies(self) -> None:
        """All replicas of a version are killed at once."""

        def kill() -> None:
            start = time.monotonic()
            for pid in replicas_of(2):
                os.kill(pid, signal.SIGKILL)
            self.times["dead: back after"] = self.load.wait_for(EVERYBODY, start + 0.2, times=20, most=LONGEST)
            self._all_there()

        self._during("all replicas of a version are killed", kill)

    def node_dies(self, lose: Callable[[], None]) -> None:
        """A machine is lost, with one replica of each version."""

        def kill() -> None:
            lose()
            time.sleep(self.seconds)

        self._during("a node is lost", kill)

    def _heal(self, stop: Path, name: str) -> None:
        stop.unlink()
        self.times[name] = self.load.wait_for(EVERYBODY, time.monotonic(), times=20, most=LONGEST)
        self._all_there()

    def _during(self, name: str, work: Callable[[], None]) -> None:
        say(name)
        start = time.monotonic()
        work()
        self.spans.append((name, start, time.monotonic()))
        self._note_faults(name)

    @property
    def phases(self) -> list[Phase]:
        """What the clients got in each; known when they have stopped, as a request may outlast its phase."""
        asked = self.load.asked
        return [Phase.of(name, [a for a in asked if start <= a.start < end]) for name, start, end in self.spans]

    def _note_faults(self, phase: str) -> None:
        """What the guard told of versions since it was asked last."""
        events = httpx.get(f"{self.load.url}/status", timeout=LONGEST).json()["events"]
        faults = [event for event in events if event["event"] == "fault" and event["time"] > self._told]
        self.noticed += [(phase, f"{each['version']}, {each['kind']}: {each['detail']}") for each in faults]
        self._told = max([self._told, *(event["time"] for event in events)])

    def _all_there(self) -> None:
        end = time.monotonic() + LONGEST
        while time.monotonic() < end and any(len(replicas_of(column)) < 2 for column in EVERYBODY):
            time.sleep(0.1)


def replicas_of(column: int) -> set[int]:
    """Processes of a version's replicas."""
    found = set()
    for process in psutil.process_iter(["cmdline"]):
        title = (process.info["cmdline"] or [""])[0].partition(".")[0]  # after the dot: what it is busy with
        if title.startswith("ray::ServeReplica:") and title.endswith(f":version-{column}"):
            found.add(process.pid)
    return found


@contextmanager
def two_nodes() -> Iterator[Callable[[], None]]:
    """A Ray of two nodes, with this process connected to it; what it gives loses the second one."""
    os.environ.update(ENVIRONMENT)
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args=dict(NODE))
    second = cluster.add_node(**NODE)
    cluster.wait_for_nodes()
    paths = {"env_vars": {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}}
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR, runtime_env=paths)
    try:
        yield lambda: cluster.remove_node(second, allow_graceful=False)
    finally:
        ray.shutdown()
        cluster.shutdown()  # type: ignore[no-untyped-call]


def free_port() -> int:
    """Where nobody listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def measure(seconds: float) -> Trouble:
    """Deploy a guard, ask it all the time and make trouble."""
    from ray import serve

    batch = images_of(BATCH, seed=2)[0]
    with tempfile.TemporaryDirectory() as folder, two_nodes() as lose:
        orders = Path(folder, "orders")
        orders.mkdir()
        models, sound = saved_guard(Path(folder, "guard"), orders, batch)
        guard = RayGuard(
            Path(folder, "guard"),
            models,
            runtime=Settings(deadline=DEADLINE, longest_probe=2.0),
            server=ServerSettings(deadline=6 * DEADLINE),
            replicas=ReplicaSettings(replicas=2, replicas_per_node=1, cpus=0.1, hang_seconds=HANG, check_every=1.0),
            guard_cpus=0.1,
            guard_resources={"node:__internal_head__": 0.001},
        )
        listening = Listening(port=free_port(), grpc_port=None)
        say("deploying")
        # Both nodes are on this machine, whose port can be one proxy's only; on machines of their own each has one.
        serve.start(proxy_location="HeadOnly", http_options={"host": listening.host, "port": listening.port})
        with deployed(guard, listening), Load(f"http://127.0.0.1:{listening.port}", batch, sound) as load:
            trouble = Trouble(load, orders, seconds)
            trouble.warm_up()
            trouble.quiet("before")
            trouble.replicas_die()
            trouble.version_hangs()
            trouble.version_dies()
            trouble.quiet("after")
            trouble.node_dies(lose)
        return trouble


def bars_for(trouble: Trouble) -> list[Bar]:
    """What is demanded."""
    phases = {phase.name: phase for phase in trouble.phases if phase.name != WARM_UP}
    before, hung = phases["before"], phases["a version hangs: it is left out"]
    killed = phases["single replicas are killed"]
    bars = [Bar(each.name, "failed requests", each.failed, 0, note=f"of {each.requests}") for each in phases.values()]
    bars += [
        Bar("all phases", "inputs with a wrong answer", sum(phase.wrong for phase in phases.values()), 0),
        Bar("all phases", "answers without any version", sum(phase.unanswered for phase in phases.values()), 0),
        Bar("single replicas", "share of answers without all versions", killed.degraded / killed.requests, 0.01),
        Bar("a version hangs", "p50 of before", hung.p50 / before.p50, 1.5, note="Ray Serve alone: 11"),
        Bar("a version hangs", "seconds until it is left out", trouble.times["hung: left out after"], 1.5 * DEADLINE),
    ]
    return bars


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short phases")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    seconds = 6.0 if options.quick else 20.0
    trouble = measure(seconds)
    header = ("phase", "requests", "failed", "wrong", "degraded", "p50 ms", "p99 ms")
    rows = [
        (p.name, *map(str, (p.requests, p.failed, p.wrong, p.degraded)), f"{1e3 * p.p50:.0f}", f"{1e3 * p.p99:.0f}")
        for p in trouble.phases
    ]
    times = [(name, f"{seconds:.2f} s") for name, seconds in trouble.times.items()]
    bars = bars_for(trouble)
    print("\n".join([*aligned([header, *rows]), "", *aligned(times), "", *bar_lines(bars)]))
    print("\n".join(["", "what the guard noticed:", *aligned([*trouble.noticed] or [("nothing", "")], left=(0, 1))]))
    failures = sorted({each.failure for each in trouble.load.asked if each.failure})
    if failures:
        print("\n".join(["", "failures:", *failures]))
    if options.json is not None:
        settings = {"quick": options.quick, "deadline": DEADLINE, "hang_seconds": HANG, "batch": BATCH}
        results = {
            "phases": [asdict(phase) for phase in trouble.phases],
            "times": trouble.times,
            "noticed": trouble.noticed,
        }
        write_json(options.json, as_json(settings, results, bars))


if __name__ == "__main__":
    main()
