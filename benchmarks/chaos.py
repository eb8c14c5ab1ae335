"""The guard under fault: every way to break versions that it must bear, under load, hundreds of times.

    python benchmarks/chaos.py [--quick] [--json PATH] [--junit PATH] [--only CLASS ...] [--trials 300] [--seed 0]

Five versions trained on digits answer clients without a pause, while one version after the other, or several at once,
is broken, watched, and healed. Each verdict is compared with that of the guard of exactly the versions that it says
have answered. `docs/chaos.md` explains the tables. Ctrl-C prints what there is so far.
"""

import argparse
import logging
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

os.environ.setdefault("OMP_NUM_THREADS", "1")  # also of the versions' processes

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `benchmarks` and `mydataset` are found

from benchmarks.mishaps.campaign import Case, run_case, trials_for
from benchmarks.mishaps.figures import ClassRun, as_plain, claims_of
from benchmarks.mishaps.judging import TOLERANCE
from benchmarks.mishaps.junit import write_junit
from benchmarks.mishaps.references import References
from benchmarks.mishaps.refusing import LOADINGS
from benchmarks.mishaps.scenarios import SCENARIOS
from benchmarks.mishaps.service import Plan
from benchmarks.mishaps.subjects import guard_on_digits
from benchmarks.mishaps.tables import UNNOTICED, coverage_lines, service_lines, sum_lines, unnoticed_lines
from benchmarks.reporting import as_json, digest_of_code, say, write_json
from deepfailguard.runtime.housing import Isolation

KEPT = Path(__file__).resolve().parents[1] / "outputs" / "benchmarks" / "chaos"
DECIDING = ("predictor/**/*.py", "decision/*.py", "guard/*.py", "versions/*.py")
MEASURED = (*DECIDING, "runtime/**/*.py")
QUICK_TRIALS = 3
GROUPS = ("in process", "pairs", "on disk", "processes")  # what takes longest comes last
CASES: tuple[Case, ...] = tuple(sorted((*SCENARIOS, *LOADINGS), key=lambda case: GROUPS.index(case.group)))


def main() -> None:
    """Break versions, print, and write what was asked for."""
    options = arguments()
    torch.set_num_threads(1)
    plan = plan_for(options.seed)
    runs: dict[str, ClassRun] = {}
    try:
        cases = chosen(options.only, options.isolation)
        for number, case in enumerate(cases, 1):
            for run in run_case(plan, case, trials_for(case, options.trials), say):
                runs[case.name] = run
            report(list(runs.values()), plan, options)
            kept = "as promised" if holds(runs[case.name]) else "NOT AS PROMISED"
            say(f"{number} of {len(cases)} classes, {case.name}: {kept}, in {runs[case.name].seconds:.0f} s")
    except KeyboardInterrupt:
        say("stopped; here is what there is so far")
    if runs:
        report(list(runs.values()), plan, options)
        show(list(runs.values()))


def plan_for(seed: int) -> Plan:
    """The guard and what it must answer; kept until what decides its answers changes."""
    deciding = digest_of_code(*(f"deepfailguard/{pattern}" for pattern in DECIDING), "benchmarks/mishaps/subjects.py")
    folder = KEPT / deciding[:12]
    subject = guard_on_digits(folder, seed, say)
    say("answers of the guards of all subsets")
    references = References(subject.guard, subject.images, folder)
    return Plan(subject, references, folder / "run", seed)


def chosen(only: Sequence[str], isolation: Isolation | None) -> list[Case]:
    """The classes that were asked for, by their names or those of groups."""
    unknown = set(only) - {case.name for case in CASES} - set(GROUPS)
    if unknown:
        known = ", ".join(map(repr, (*GROUPS, *(case.name for case in CASES))))
        sys.exit(f"chaos.py: there is no class {', '.join(map(repr, sorted(unknown)))}; there are {known}")
    wanted = [case for case in CASES if not only or {case.name, case.group} & set(only)]
    return [case for case in wanted if isolation in (None, case.isolation)]


def holds(run: ClassRun) -> bool:
    """Whether everything does that must hold of a class."""
    return all(claim.holds for claim in claims_of(run))


def report(runs: Sequence[ClassRun], plan: Plan, options: argparse.Namespace) -> None:
    """Write the files that were asked for."""
    if options.json:
        results = {"classes": [as_plain(run) for run in runs], "unnoticed": list(map(list, UNNOTICED))}
        write_json(options.json, as_json(settings(plan, options), results, ()))
    if options.junit:
        write_junit(options.junit, runs)


def settings(plan: Plan, options: argparse.Namespace) -> dict[str, Any]:
    """What a reader of the figures must know; no paths."""
    code = digest_of_code(*(f"deepfailguard/{pattern}" for pattern in MEASURED), "benchmarks/mishaps/*.py")
    return {
        "seed": plan.seed,
        "trials": options.trials,
        "quick": options.quick,
        "versions": plan.subject.guard.saved.summary,
        "load": asdict(plan.habits),
        "runtime": asdict(plan.settings),
        "changed": {case.name: case.settings for case in SCENARIOS if case.settings},
        "tolerance": TOLERANCE,
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "busy": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "code": code[:12],
        "when": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def show(runs: Sequence[ClassRun]) -> None:
    """Print the tables."""
    for lines in (coverage_lines(runs), service_lines(runs), sum_lines(runs), unnoticed_lines()):
        print("\n".join([*lines, ""]))
    for run in runs:
        for claim in claims_of(run):
            if not claim.holds:
                print(f"NOT AS PROMISED: {run.name}: {claim.name}: {claim.told}")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_TRIALS} trials of each class")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--junit", type=Path, help="write the claims to this file, as JUnit XML")
    parser.add_argument("--only", nargs="+", default=[], metavar="CLASS", help="classes, or groups of them")
    parser.add_argument("--isolation", choices=get_args(Isolation), help="only classes of versions that run so")
    parser.add_argument("--trials", type=int, default=300, help="of each class")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.trials < 1:
        parser.error("--trials must be at least 1")
    if options.quick:
        options.trials = QUICK_TRIALS
    return options


if __name__ == "__main__":
    logging.getLogger("deepfailguard.runtime").setLevel(logging.ERROR)  # it tells each of the faults
    main()
