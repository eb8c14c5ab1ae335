"""What the scripts share: hydra, the paper's fault numbers, and errors that a person can read.

Every script is a shell: it turns a configuration into typed objects and calls `deepfailguard.pipeline`.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that `mydataset` and `mymodel` are found from anywhere

import hydra  # noqa: E402
from hydra.errors import InstantiationException  # noqa: E402
from omegaconf import DictConfig  # noqa: E402

from deepfailguard.errors import DeepfailguardError  # noqa: E402
from deepfailguard.faults.numbers import fault_number_names  # noqa: E402
from overrides import CONF, SWEEP, check_overrides  # noqa: E402

__all__ = ["ROOT", "name_faults", "script"]


def script(config: str) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """Turn a function of a configuration into a command-line program with hydra's overrides."""

    def decorate(function: Callable[[DictConfig], None]) -> Callable[[], None]:
        failures: list[str] = []  # a sweep goes on after a job that failed

        def run(cfg: DictConfig) -> None:
            try:
                function(cfg)
            except (DeepfailguardError, FileNotFoundError, InstantiationException) as error:
                failures.append(f"error: {_root_cause(error)}")
                print(failures[-1], file=sys.stderr)
            except KeyboardInterrupt:
                print("interrupted; run the same command again to go on where it stopped", file=sys.stderr)
                sys.exit(130)

        def main() -> None:
            # Hydra's parser takes overrides on one side of -m only; people write them on both.
            sys.argv[1:] = sorted((name_faults(a) for a in sys.argv[1:]), key=lambda a: a not in SWEEP)
            check_overrides(config, sys.argv[1:])
            hydra.main(version_base="1.3", config_path=str(CONF), config_name=config)(run)()
            sys.exit(1 if failures else 0)

        return main

    return decorate


def name_faults(argument: str) -> str:
    """Replace the paper's fault numbers by names.

    >>> name_faults("fault=8"), name_faults("fault=[8,bit_flips]"), name_faults("seed=8")
    ('fault=label_noise', 'fault=[label_noise,bit_flips]', 'seed=8')
    """
    if not argument.startswith("fault="):
        return argument

    def name(match: re.Match[str]) -> str:
        if int(match[0]) not in fault_number_names:
            known = ", ".join(f"{number} {name}" for number, name in fault_number_names.items())
            sys.exit(f"error: no fault has the number {match[0]}; the paper's are {known}")
        return fault_number_names[int(match[0])]

    return re.sub(r"(?<![\w.])\d+(?![\w.])", name, argument)


def _root_cause(error: BaseException) -> str:
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    known = [cause for cause in causes if isinstance(cause, DeepfailguardError)]
    return str(known[-1] if known else causes[0])
