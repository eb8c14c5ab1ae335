"""What people write on the command line, checked before anything starts: no setting is ignored without a word."""

import difflib
import sys
from pathlib import Path
from typing import Any, cast

import hydra
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf

__all__ = ["CONF", "SWEEP", "check_overrides"]

CONF = Path(__file__).resolve().parents[1] / "conf"
SWEEP = ("-m", "--multirun")
_OF_A_SAVED_GUARD = ("distance", "predictor", "decision")


def check_overrides(config: str, arguments: list[str]) -> None:
    """Refuse a key that is misspelt, or that the script would not read, and name what was probably meant."""
    settings = [argument for argument in arguments if not argument.startswith("-")]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        if not set(arguments) - set(settings) - set(SWEEP):
            _refuse_unread(config, settings)
        if len(settings) < len(arguments):
            return  # multirun, help and the like: hydra's own checks must do
        try:
            hydra.compose(config, arguments)
        except ConfigCompositionException as error:
            sys.exit(f"error: {_first_lines(error)}{_nearest(config, arguments)}")


def _refuse_unread(config: str, settings: list[str]) -> None:
    """Hydra takes any key with a plus before it, and advises to write one."""
    groups, composed = _groups(config), hydra.compose(config)
    read = {"hydra", *groups, *map(str, composed)} | ({"faults"} if "fault" in groups else set())
    for setting in settings:
        key = _key(setting).split(".")[0]
        if "=" not in setting or not key:
            continue  # hydra tells what is wrong with it
        if key in read:
            _refuse_unread_inside(config, composed, setting)
        elif (CONF / key).is_dir():
            takers = [path.stem for path in sorted(CONF.glob("*.yaml")) if key in _groups(path.stem)]
            sys.exit(f"error: {config} takes no {key}={_kept(config, key)}; give it to {', '.join(takers)}")
        elif setting.startswith("+"):
            sys.exit(f"error: {config} has no setting {key!r} and would not read it; --help shows what there is")


def _kept(config: str, group: str) -> str:
    """Why a script that loads a guard takes no choice of its parts."""
    return f": a saved guard keeps its {group}" if config.startswith("evaluate") and group in _OF_A_SAVED_GUARD else ""


def _refuse_unread_inside(config: str, composed: DictConfig, setting: str) -> None:
    """An added key inside of plain settings; what is built from a `_target_` refuses unknown ones by itself."""
    key, _, inner = setting.lstrip("+~").split("=")[0].partition(".")
    plain = key not in ("faults", "hydra") and OmegaConf.is_dict(composed.get(key)) and "_target_" not in composed[key]
    if setting.startswith("+") and inner and plain and f"{key}.{inner}" not in _keys(composed):
        sys.exit(f"error: {config} has no setting {key}.{inner} and would not read it; --help shows what there is")


def _groups(config: str) -> list[str]:
    """The groups of which a script takes a choice."""
    content = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(CONF / f"{config}.yaml"), resolve=False))
    return [str(name) for entry in content.get("defaults", []) if isinstance(entry, dict) for name in entry]


def _key(setting: str) -> str:
    return setting.lstrip("+~").split("=")[0].split("@")[0].split("/")[0]


def _first_lines(error: ConfigCompositionException) -> str:
    text = str(error.__cause__ or error)
    return text.split("full_key:")[0].strip() if "full_key" in text else str(error).strip()


def _nearest(config: str, arguments: list[str]) -> str:
    choices = [a for a in arguments if "." not in a.split("=")[0] and not a.startswith("+")]
    groups = [a for a in choices if (CONF / a.split("=")[0]).is_dir()]
    try:
        known = _keys(hydra.compose(config, groups))
    except ConfigCompositionException:
        known = _keys(hydra.compose(config))
    wrong = [a.split("=")[0] for a in arguments if "=" in a and a.split("=")[0] not in known and a not in groups]
    return "".join(_advice(key, known) for key in wrong)


def _advice(key: str, known: list[str]) -> str:
    """What a wrong key belongs to, or else which known one is like it."""
    choices = _choices_with(key)
    if choices:
        return f"\n  {key} goes with {' or '.join(choices)}: give that, too"
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    return f"\n  {key}: did you mean {close[0]}?" if close else ""


def _choices_with(key: str) -> list[str]:
    """Choices of a group that have a setting, as for launcher.workers."""
    group, _, setting = key.partition(".")
    paths = sorted((CONF / group).glob("*.yaml")) if setting else []
    return [f"{group}={path.stem}" for path in paths if setting in OmegaConf.load(path)]


def _keys(cfg: DictConfig) -> list[str]:
    def walk(node: object, prefix: str) -> list[str]:
        if not isinstance(node, dict):
            return [prefix]
        return [prefix] * bool(prefix) + [k for n, v in node.items() for k in walk(v, f"{prefix}.{n}".lstrip("."))]

    return [key for key in walk(OmegaConf.to_container(cfg, resolve=False), "") if not key.endswith("_target_")]
