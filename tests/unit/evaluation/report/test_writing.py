import csv
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

from deepfailguard.errors import ConfigurationError
from deepfailguard.evaluation.records import Evaluation
from deepfailguard.evaluation.report.summary import summarise
from deepfailguard.evaluation.report.writing import write_report, write_study

ATTACK = "<script>alert('x')</script>"


class Page(HTMLParser):
    """The cells of every table by its id, the names of all elements, and the text outside of styles."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.elements: list[str] = []
        self.text = ""
        self._rows: list[list[str]] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "wbr":  # a place where a line may break, inside of a name
            return
        self.elements.append(tag)
        if tag == "table":
            self._rows = self.tables.setdefault(dict(attrs).get("id") or "", [])
        if tag == "tr":
            self._rows.append([])
        if tag in {"td", "th"}:
            self._rows[-1].append("")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.elements[-1:] in (["td"], ["th"]):
            self._rows[-1][-1] += data.strip().replace("\u00a0", " ")


@pytest.fixture(scope="module")
def written(evaluation: Evaluation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(evaluation, tmp_path_factory.mktemp("report"))


def test_every_file_is_there(written: Path) -> None:
    files = {str(path.relative_to(written.parent)) for path in written.parent.rglob("*") if path.is_file()}
    plain = {"report.html", "summary.json", "versions.csv", "ensemble.csv", "answers.csv"}
    pictures = {f"pictures/{name}.png" for name in ("accuracy", "reliability", "risk", "densities")}
    assert files >= plain | pictures
    assert all(re.fullmatch(r"pictures/(rescued|harmed)-\d\.png", name) for name in files - plain - pictures)
    for name in files:
        if name.endswith(".png"):
            Image.open(written.parent / name).verify()


def test_the_page_shows_the_figures_of_an_independent_count(written: Path, evaluation: Evaluation) -> None:
    page = Page(written)
    right = evaluation.evidence.labels == evaluation.truth[:, None]
    wrong_versions = (~right).sum(1)
    head, *rows = page.tables["error-classes"]
    assert [int(row[1]) for row in rows] == [int((wrong_versions == k).sum()) for k in (1, 2, 3)]
    guard_right = evaluation.decision.labels == evaluation.truth
    counted = [int((guard_right & (wrong_versions == k)).sum()) for k in (1, 2, 3)]
    assert [int(row[head.index("guard right")]) for row in rows] == counted
    versions = {row[0]: row for row in page.tables["versions"][1:]}
    for i, name in enumerate(evaluation.names):
        assert versions[name][2] == f"{100 * right[:, i].double().mean():.1f} %"
    assert versions["guard"][2] == f"{100 * guard_right.double().mean():.1f} %"
    assert versions["version1-s0"][1] == "label_noise"


def test_the_page_shows_which_versions_fail_together(written: Path, evaluation: Evaluation) -> None:
    wrong = evaluation.evidence.labels != evaluation.truth[:, None]
    head, *rows = Page(written).tables["pairs"]
    assert len(rows) == 3
    for row in rows:
        first, second = (evaluation.names.index(name) for name in row[0].split(", "))
        both, either = (wrong[:, first] & wrong[:, second]).sum(), (wrong[:, first] | wrong[:, second]).sum()
        assert int(row[head.index("both wrong")]) == both
        assert row[head.index("shared failures")] == f"{100 * both / either:.0f} %"
    shares = [int(row[-1].split()[0]) for row in rows]
    assert shares == sorted(shares, reverse=True)


def test_json_and_csv_equal_the_summary(written: Path, evaluation: Evaluation) -> None:
    summary = summarise(evaluation)
    assert json.loads((written.parent / "summary.json").read_text(encoding="utf-8")) == summary.as_dict()
    with (written.parent / "answers.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    right = sum(row["guard"] == row["truth"] for row in rows)
    assert right / len(rows) == summary.measures.guard
    with (written.parent / "versions.csv").open(encoding="utf-8") as file:
        assert [float(row["accuracy"]) for row in csv.DictReader(file)] == list(summary.measures.version_accuracy)


def test_the_page_holds_the_headline_and_needs_nothing_else(written: Path, evaluation: Evaluation) -> None:
    text = written.read_text(encoding="utf-8")
    assert summarise(evaluation).headline.replace(" %", "\u00a0%") in text
    addresses = re.findall(r'(?:src|srcset|href)="([^"]*)"', text)
    own = {"summary.json", "ensemble.csv", "versions.csv", "answers.csv", "pictures/"}
    assert own < set(addresses)
    assert all(address.startswith("data:image/png;base64,") for address in set(addresses) - own)
    assert not re.search(r"url\(|@import|https?://", text)


def test_the_same_evaluation_gives_the_same_files(written: Path, evaluation: Evaluation, tmp_path: Path) -> None:
    write_report(evaluation, tmp_path)
    first = {path.relative_to(written.parent): path for path in written.parent.rglob("*") if path.is_file()}
    second = {path.relative_to(tmp_path): path for path in tmp_path.rglob("*") if path.is_file()}
    assert first.keys() == second.keys()
    assert [name for name in first if first[name].read_bytes() != second[name].read_bytes()] == []


def test_names_from_users_are_text_and_never_markup(random: Callable[..., Evaluation], tmp_path: Path) -> None:
    names, classes = [ATTACK, 'a" onload="x', "$b$"], [ATTACK, "b&b", "c", "d" * 300]
    path = write_report(random(names=names, classes=classes, inputs=30, abstain_above=0.3), tmp_path)
    page = Page(path)
    assert "script" not in page.elements
    assert {row[0] for row in page.tables["versions"][1:]} == {*names, "guard"}
    assert ATTACK in page.text
    assert "<script" not in path.read_text(encoding="utf-8").lower()
    assert "The guard abstains on" in page.text


@pytest.mark.parametrize("kind", ["all_right", "all_wrong"])
def test_without_rescued_or_harmed_inputs_the_page_says_so(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    (tmp_path / "pictures").mkdir()
    for stale in ("rescued-1.png", "harmed-3.png", "mine.png"):
        (tmp_path / "pictures" / stale).write_bytes(b"old")
    page = Page(write_report(request.getfixturevalue(kind), tmp_path))
    assert "the guard never corrects the vote here" in page.text
    assert "the guard never spoils a right vote here" in page.text
    assert not [*tmp_path.glob("pictures/rescued-*"), *tmp_path.glob("pictures/harmed-*")]
    assert (tmp_path / "pictures" / "mine.png").read_bytes() == b"old"
    auroc = [row[4] for row in page.tables["versions"][1:]]
    assert auroc == ["–", "–", "–"]


def test_one_version_without_calibration_evidence(random: Callable[..., Evaluation], tmp_path: Path) -> None:
    page = Page(write_report(random(versions=1, inputs=20, calibrated=False), tmp_path))
    assert "With a single version there is nothing to choose" in page.text
    assert "holds no calibration evidence" in page.text
    assert len(page.tables["error-classes"]) == 2
    assert "pairs" not in page.tables


def test_a_guard_that_does_harm_is_called_so(build: Callable[..., Evaluation], tmp_path: Path) -> None:
    truth = torch.zeros(10, dtype=torch.int64)
    labels = torch.tensor([[1, 0, 0]]).repeat(10, 1)
    probability = torch.tensor([[0.1, 0.3, 0.3]]).repeat(10, 1)
    page = Page(write_report(build(labels, truth, probability), tmp_path))
    assert "on these inputs the guard does harm" in page.text
    assert "running this version alone would have been better" in page.text
    assert len(list(tmp_path.glob("pictures/harmed-*.png"))) == 6
    assert "6 of 10 inputs" in page.text


ROWS = [
    {"setting": "sound", "size": 2, "rule": ATTACK, "accuracy": 0.9, "rescue_share": 0.125},
    {"setting": "sound", "size": 3, "rule": ATTACK, "accuracy": 0.95, "rescue_share": float("nan")},
]


def test_a_study_is_written_whole(tmp_path: Path) -> None:
    path = write_study(ROWS * 3, ROWS, f"a study {ATTACK}", tmp_path)
    page = Page(path)
    assert path == tmp_path / "study.html"
    assert page.tables["summary"][0] == ["setting", "size", "rule", "accuracy", "rescue share"]
    assert page.tables["summary"][1:] == [
        ["sound", "2", ATTACK, "90.0 %", "12.5 %"],
        ["sound", "3", ATTACK, "95.0 %", "–"],
    ]
    assert "script" not in page.elements
    content = json.loads((tmp_path / "study.json").read_text(encoding="utf-8"))
    assert content["summary"][0] == ROWS[0]
    assert content["summary"][1]["rescue_share"] is None
    assert len(content["rows"]) == 6
    with (tmp_path / "study.csv").open(encoding="utf-8") as file:
        assert [row["rescue_share"] for row in csv.DictReader(file)] == ["0.125", ""] * 3
    assert "| sound | 2 |" in (tmp_path / "study.md").read_text(encoding="utf-8")
    Image.open(tmp_path / "pictures" / "rescue.png").verify()


def test_a_study_without_shares_says_that_it_has_no_picture(tmp_path: Path) -> None:
    page = Page(write_study([{"a": 1}], [{"b": 2}], "bare", tmp_path))
    assert "There is no picture" in page.text
    assert "img" not in page.elements


def test_a_study_removes_its_old_picture_and_leaves_those_of_a_report(evaluation: Evaluation, tmp_path: Path) -> None:
    write_report(evaluation, tmp_path)
    before = {path.name for path in (tmp_path / "pictures").iterdir()}
    write_study(ROWS * 3, ROWS, "drawn", tmp_path)
    assert (tmp_path / "pictures" / "rescue.png").exists()
    write_study([{"a": 1}], [{"b": 2}], "bare", tmp_path)
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == before


def test_an_empty_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="at least one row and one summary row, got 0 and 2"):
        write_study([], ROWS, "empty", tmp_path)


def test_a_guard_that_asked_for_no_distances_has_no_chapter_on_them(evaluation: Evaluation, tmp_path: Path) -> None:
    bare = replace(evaluation.evidence, found=torch.zeros_like(evaluation.evidence.found))
    page = write_report(replace(evaluation, evidence=bare), tmp_path).read_text()
    assert "Boundary distances" not in page
    assert not (tmp_path / "pictures" / "densities.png").exists()
    assert "Boundary distances" in write_report(evaluation, tmp_path).read_text()
    assert (tmp_path / "pictures" / "densities.png").exists()
    write_report(replace(evaluation, evidence=bare), tmp_path)
    assert not (tmp_path / "pictures" / "densities.png").exists()  # that of the page before
