"""What README and docs show runs, and what they point at exists."""

import re
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [(page, block) for page in PAGES for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.S)]


@pytest.mark.parametrize(("page", "block"), BLOCKS, ids=lambda v: v.name if isinstance(v, Path) else "")
def test_examples_run(page: Path, block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    exec(compile(block, str(page), "exec"), {})


def test_there_are_examples() -> None:
    assert any(page.name == "README.md" for page, _ in BLOCKS)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.name} points at {target}"


def test_readme_names_every_choice() -> None:
    text = (ROOT / "README.md").read_text()
    for group in ("dataset", "model", "fault", "distance", "predictor", "decision"):
        for path in ours(f"conf/{group}"):
            assert f"`{path.stem}`" in text, f"README does not name {group}={path.stem}"


def ours(folder: str) -> list[Path]:
    """The folder's files that git tracks: a user's own choices need not stand in README."""
    listed = subprocess.run(["git", "ls-files", folder], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / line for line in listed.stdout.splitlines()]


def test_readme_names_every_script_and_make_target() -> None:
    text = (ROOT / "README.md").read_text() + (ROOT / "CONTRIBUTING.md").read_text()
    for path in (ROOT / "conf").glob("*.yaml"):
        if path.stem not in {"common", "demo"}:
            assert f"scripts/{path.stem}.py" in text
    for target in re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M):
        if target not in {"clean"}:
            assert f"make {target}" in text, target
