"""The layout holds itself up: imports point down, files stay small, the public names are those we mean."""

import ast
import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "deepfailguard"
MODULES = sorted(PACKAGE.rglob("*.py"))
SOURCES = [*MODULES, *(p for d in ("mydataset", "mymodel", "scripts", "benchmarks") for p in (ROOT / d).rglob("*.py"))]

RANKS = {
    **dict.fromkeys(("errors", "seeding", "torchvision_import"), 0),
    **dict.fromkeys(("types", "identity", "device"), 0.5),  # single modules of rank 0 that know the errors
    **dict.fromkeys(("store", "hooks", "progress"), 1),
    **dict.fromkeys(("data", "versions"), 2),
    **dict.fromkeys(("faults", "training", "boundary", "predictor", "decision"), 3),
    **dict.fromkeys(("monitor", "diagnosis", "recovery", "campaign", "guard", "evaluation"), 4),
    **dict.fromkeys(("pipeline", "runtime"), 5),
    "serving": 6,
    "cli": 7,
}
LARGEST_FILE = 400
MOST_ARGUMENTS = 9  # GuardedPredictor.fit, the front door; elsewhere aim at 6


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
    return names


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down(path: Path) -> None:
    part = part_of(path)
    if part == "__init__":
        assert not imported_modules(path)
        return
    assert part in RANKS, f"{part} has no rank; give it one in DESIGN and here"
    for module in imported_modules(path):
        if module == "deepfailguard":  # the root holds the version number only
            continue
        if module.startswith("deepfailguard."):
            other = module.split(".")[1]
            assert other == part or RANKS[other] < RANKS[part], f"{name_of(path)} must not import {module}"
        assert module.split(".")[0] not in {"mydataset", "mymodel", "scripts", "hydra", "omegaconf", "pickle5", "dill"}


def test_every_module_can_be_imported_alone() -> None:
    for path in MODULES:
        importlib.import_module(name_of(path))


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_are_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LARGEST_FILE


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_functions_take_few_arguments(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            count = len(node.args.args) + len(node.args.kwonlyargs)
            assert count <= MOST_ARGUMENTS, f"{node.name} takes {count}"


@pytest.mark.parametrize("path", [p for p in MODULES if p.name != "__init__.py"], ids=name_of)
def test_modules_say_what_is_public(path: Path) -> None:
    module = importlib.import_module(name_of(path))
    assert module.__all__ == sorted(module.__all__, key=lambda n: (not n.isupper(), not n[0].isupper(), n))
    for name in module.__all__:
        assert hasattr(module, name)
    assert (module.__doc__ or "").strip()


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_drawer_for_everything(path: Path) -> None:
    assert path.name not in {"utils.py", "helpers.py", "common.py", "misc.py"}


def test_scripts_are_shells() -> None:
    for path in (ROOT / "scripts").glob("*.py"):
        if path.name not in {"entry.py", "overrides.py", "parts.py"}:
            assert len(path.read_text().splitlines()) <= 50, path.name


def test_public_names_are_pinned() -> None:
    """A change here changes what users import: say so in CHANGELOG.md and run `python tests/test_architecture.py`."""
    assert public_names() == json.loads((ROOT / "tests" / "public_names.json").read_text())


def public_names() -> dict[str, list[str]]:
    modules = {name_of(path): importlib.import_module(name_of(path)) for path in MODULES}
    return {name: list(module.__all__) for name, module in modules.items() if hasattr(module, "__all__")}


if __name__ == "__main__":
    text = json.dumps(public_names(), indent=1, sort_keys=True) + "\n"
    (ROOT / "tests" / "public_names.json").write_text(text)
