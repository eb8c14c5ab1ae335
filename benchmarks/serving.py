"""The guard as a service under load: what it costs, how much and how fast it answers, and whether it lasts.

    python benchmarks/serving.py [--quick] [--json PATH] [--only overhead throughput latency soak swap]

Each way is measured side by side with what it is compared with, in rounds that take turns; figures are medians of the
rounds' ratios, with the range of 10 % to 90 %. The server is `deepfailguard serve` in a process of its own with one
thread for arithmetic; clients come over loopback and share the machine with it. docs/serving.md explains the figures.
"""

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Final

os.environ.setdefault("OMP_NUM_THREADS", "1")  # also of the versions' processes

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `benchmarks`, `mydataset`, `mymodel` are found

from benchmarks.reporting import Bar, as_json, bar_lines, digest_of_code, say, write_json
from benchmarks.serving_load import latency, overhead, soaking, swapping, throughput
from benchmarks.serving_load.clients import Client, best_client
from benchmarks.serving_load.server import Server
from benchmarks.serving_load.subjects import MADE_UP, Subject, digits_guard, fresh_state, made_up

KEPT: Final = Path(__file__).resolve().parents[1] / "outputs" / "benchmarks" / "serving"
MEASURED: Final = ("runtime/**/*.py", "serving/*.py", "guard/*.py", "predictor/**/*.py", "versions/*.py")
PARTS: Final = ("overhead", "throughput", "latency", "soak", "swap")


@dataclass(frozen=True, slots=True)
class Amount:
    """How much is measured.

    Attributes:
        overhead: rounds of small versions.
        overhead_full_size: rounds of large ones, of which each takes seconds; 0 for none.
        rounds: of throughput and latency.
        seconds: for each of their measurements.
        soak: requests to versions in process.
        soak_processes: requests to versions in processes of their own.
        soak_seconds: after which no more requests are made.
        turns: of swapping.
    """

    overhead: int = 100
    overhead_full_size: int = 15
    rounds: int = 7
    seconds: float = 6.0
    soak: int = 50_000
    soak_processes: int = 10_000
    soak_seconds: float = 1800.0
    turns: int = 25


QUICK: Final = Amount(10, 0, 2, 2.0, 600, 300, 120.0, 3)


@dataclass(slots=True)
class Results:
    """What was measured so far.

    Attributes:
        parts: everything, by part.
        lines: tables.
        bars: what is demanded.
    """

    parts: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)

    def add(self, name: str, part: Any, lines: Sequence[str], bars: Sequence[Bar]) -> None:
        """Add a part."""
        self.parts[name] = plain(part)
        self.lines += [name, *lines, ""]
        self.bars += bars


def plain(value: Any) -> Any:
    """Records as dictionaries, ready for JSON; `asdict` does not know how to copy a `Counter`."""
    if is_dataclass(value):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return value


def main() -> None:
    """Measure, print, and write what was asked for."""
    options = arguments()
    torch.set_num_threads(1)
    amount, results = QUICK if options.quick else Amount(), Results()
    subject = digits_guard(KEPT, say)
    try:
        for part in [each for each in PARTS if each in options.only]:
            say(part)
            MEASURES[part](subject, amount, options.client, results)
    except KeyboardInterrupt:
        say("stopped; here is what there is so far")
    print("\n".join([*results.lines, *(bar_lines(results.bars) if results.bars else ["nothing was measured"])]))
    if options.json:
        write_json(options.json, as_json(settings(subject, amount, options), results.parts, results.bars))


def measure_overhead(subject: Subject, amount: Amount, client: Client, results: Results) -> None:
    """The runtime and the guard beside a plain loop."""
    few = amount.overhead_full_size
    measured = [overhead.measure_overhead(subject, amount.overhead)]
    for name in MADE_UP:
        if "full size" in name and not few:
            say(f"left out, as fitting the guard takes minutes: {name}")
            continue
        say(f"overhead: {name}")
        measured.append(overhead.measure_overhead(made_up(name), few if "full size" in name else amount.overhead))
    lines = [*overhead.cost_lines(measured), *overhead.place_lines(measured)]
    results.add("overhead", measured, lines, overhead.bars_for(measured))


def measure_throughput(subject: Subject, amount: Amount, client: Client, results: Results) -> None:
    """HTTP beside calling the runtime."""
    with server_of(subject) as server:
        found = throughput.measure_throughput(subject, server, KEPT / "requests", client, amount.rounds, amount.seconds)
    results.add("throughput", found, throughput.throughput_lines(found), throughput.bars_for(found))


def measure_latency(subject: Subject, amount: Amount, client: Client, results: Results) -> None:
    """Single images at 70 % of what the server can do, which is measured before if it was not yet."""
    if "throughput" not in results.parts:
        measure_throughput(subject, amount, client, results)
    bursts = results.parts["throughput"][0]["bursts"]
    capacity = sorted(burst["rate"] for burst in bursts)[len(bursts) // 2]
    with server_of(subject) as server:
        found = latency.measure_latency(subject, server, KEPT / "requests", capacity, amount.rounds, amount.seconds)
    results.add("latency", found, latency.latency_lines(found), latency.bars_for(found))


def measure_soak(subject: Subject, amount: Amount, client: Client, results: Results) -> None:
    """Tens of thousands of requests of all kinds."""
    told, wanted = [], {"in process": amount.soak, "processes": amount.soak_processes}
    for isolation, requests in wanted.items():
        say(f"soak: {requests} requests, versions {isolation}")
        with server_of(subject, "--isolation", isolation) as server:
            told.append(soaking.soak(subject, server, isolation, requests, amount.soak_seconds))
    lines = [*soaking.soak_lines(told), "", *soaking.memory_lines(told)]
    results.add("soak", told, lines, soaking.bars_for(told, list(wanted.values())))


def measure_swap(subject: Subject, amount: Amount, client: Client, results: Results) -> None:
    """Versions change while clients ask."""
    with server_of(subject, "--standby", subject.names[-1]) as server:
        told = swapping.swap_under_load(subject, server, amount.turns)
    results.add("swap", told, swapping.swap_lines(told), swapping.bars_for(told, amount.turns))


MEASURES: Final[dict[str, Callable[[Subject, Amount, Client, Results], None]]] = {
    "overhead": measure_overhead,
    "throughput": measure_throughput,
    "latency": measure_latency,
    "soak": measure_soak,
    "swap": measure_swap,
}


def server_of(subject: Subject, *options: str) -> Server:
    """A server of a saved guard, with a state in which only fitted decisions are left from before."""
    assert subject.folder is not None
    return Server(subject.folder, fresh_state(KEPT / "state-server"), KEPT / "server.log", options)


def settings(subject: Subject, amount: Amount, options: argparse.Namespace) -> dict[str, Any]:
    """What a reader of the figures must know; no paths."""
    code = digest_of_code(*(f"deepfailguard/{pattern}" for pattern in MEASURED), "benchmarks/serving_load/*.py")
    return {
        "quick": options.quick,
        "amount": asdict(amount),
        "client": options.client,
        "versions": subject.guard.saved.summary,
        "made up": {name: [type(each).__name__ for each in families] for name, (_, families) in MADE_UP.items()},
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "busy": os.getloadavg()[0],
        "threads": os.environ["OMP_NUM_THREADS"],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "code": code[:12],
        "when": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds and requests")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts; all if left out")
    parser.add_argument("--client", choices=("wrk", "own"), default=best_client(), help="who asks for throughput")
    return parser.parse_args()


if __name__ == "__main__":
    main()
