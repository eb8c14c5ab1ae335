"""What the scripts share: hydra, the paper's fault numbers, and errors that a person can read.

Every script is a shell: it turns a configuration into typed objects and calls `deepfailguard.pipeline`.
"""

import difflib
import re
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that `mydataset` and `mymodel` are found from anywhere

import hydra  # noqa: E402
from hydra.errors import ConfigCompositionException, InstantiationException  # noqa: E402
from omegaconf import DictConfig, OmegaConf  # noqa: E402

from deepfailguard.errors import DeepfailguardError  # noqa: E402
from deepfailguard.faults.numbers import fault_number_names  # noqa: E402

__all__ = ["ROOT", "name_faults", "script"]

_CONF = str(ROOT / "conf")
_SWEEP = ("-m", "--multirun")


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
            sys.argv[1:] = sorted((name_faults(a) for a in sys.argv[1:]), key=lambda a: a not in _SWEEP)
            _check_overrides(config, sys.argv[1:])
            hydra.main(version_base="1.3", config_path=_CONF, config_name=config)(run)()
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


def _check_overrides(config: str, arguments: list[str]) -> None:
    """Refuse a misspelt key before anything starts, and name the keys that are nearest to it."""
    if any(argument.startswith("-") for argument in arguments):
        return  # multirun, help and the like: hydra's own checks must do
    with hydra.initialize_config_dir(_CONF, version_base="1.3"):
        try:
            hydra.compose(config, arguments)
        except ConfigCompositionException as error:
            sys.exit(f"error: {_first_lines(error)}{_nearest(config, arguments)}")


def _first_lines(error: ConfigCompositionException) -> str:
    text = str(error.__cause__ or error)
    return text.split("full_key:")[0].strip() if "full_key" in text else str(error).strip()


def _nearest(config: str, arguments: list[str]) -> str:
    choices = [a for a in arguments if "." not in a.split("=")[0] and not a.startswith("+")]
    groups = [a for a in choices if (ROOT / "conf" / a.split("=")[0]).is_dir()]
    try:
        known = _keys(hydra.compose(config, groups))
    except ConfigCompositionException:
        known = _keys(hydra.compose(config))
    wrong = [a.split("=")[0] for a in arguments if "=" in a and a.split("=")[0] not in known and a not in groups]
    lines = []
    for key in wrong:
        close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
        if close:
            lines.append(f"\n  {key}: did you mean {', '.join(close)}?")
    return "".join(lines)


def _keys(cfg: DictConfig) -> list[str]:
    def walk(node: object, prefix: str) -> list[str]:
        if not isinstance(node, dict):
            return [prefix]
        return [prefix] * bool(prefix) + [k for n, v in node.items() for k in walk(v, f"{prefix}.{n}".lstrip("."))]

    return walk(OmegaConf.to_container(cfg, resolve=False), "")
