"""The scripts as a user runs them, one after the other, in a folder of their own."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = "ensemble.versions=[compact_vgg-s0,compact_densenet-s0,compact_vgg+label_noise-s0]"
SMALL = ["dataset.limit=400", "distance.effort=fast", "distance.batch_size=32"]
LIMIT = ["limit.calibration=64", "limit.test=64"]


def run(folder: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / f"{script}.py"), "device=cpu", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def succeed(folder: Path, script: str, *arguments: str) -> str:
    done = run(folder, script, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def fail(folder: Path, script: str, *arguments: str) -> str:
    done = run(folder, script, *arguments)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    recipe = ["training.epochs=2", "dataset.limit=400"]
    succeed(folder, "train_model", "-m", "model=compact_vgg,compact_densenet", *recipe)
    succeed(folder, "train_model", "model=compact_vgg", "fault=8", "faults.label_noise.rate=0.5", *recipe)
    return folder


def test_training_again_finds_the_version(trained: Path) -> None:
    output = succeed(trained, "train_model", "model=compact_vgg", "training.epochs=2", "dataset.limit=400")
    assert "compact_vgg-s0 (found again): accuracy" in output


def test_the_path_from_cache_to_reports(trained: Path) -> None:
    output = succeed(trained, "cache_distances", VERSIONS, *SMALL, *LIMIT)
    assert "compact_vgg+label_noise-s0/test: 64 distances" in output
    published = ["predictor=kde", "decision=highest_posterior"]
    output = succeed(trained, "train_guard", "name=mine", *published, VERSIONS, *SMALL, *LIMIT)
    assert "guard saved in outputs/guards/digits/mine" in output
    answers = []
    for script in ("evaluate_cached", "evaluate_live"):
        page = Path(succeed(trained, script, "name=mine", "dataset.limit=400", *LIMIT).strip().splitlines()[-1])
        assert (trained / page).is_file()
        folder = (trained / page).parent
        assert json.loads((folder / "summary.json").read_text())
        answers.append((folder / "answers.csv").read_text())
    assert answers[0] == answers[1]  # live and cached: the same verdicts, digit for digit
    assert len(list(csv.DictReader(answers[0].splitlines()))) == 64

    faulty = ["fault=noisy_inputs", "name=mine", "dataset.limit=400", *LIMIT]
    assert "run scripts/cache_distances.py" in fail(trained, "evaluate_cached", *faulty)
    succeed(trained, "evaluate_live", *faulty)

    output = succeed(
        trained, "train_guard", "name=mine", "predictor=prior", "decision=majority_vote", VERSIONS, *LIMIT, SMALL[0]
    )
    assert "replacing the guard in outputs/guards/digits/mine: 3 versions (compact_vgg-s0, " in output
    succeed(trained, "train_guard", "name=joint", VERSIONS, *SMALL, *LIMIT)
    succeed(trained, "evaluate_live", "name=joint", "dataset.limit=400", *LIMIT)
    assert "evaluate it live" in fail(trained, "evaluate_cached", "name=joint", "dataset.limit=400", *LIMIT)

    table = succeed(trained, "study", VERSIONS, *SMALL, *LIMIT, "sizes=[2]")
    page = trained / table.strip().splitlines()[-1]
    assert page.is_file()
    rows = list(csv.DictReader((page.parent / "study.csv").read_text().splitlines()))
    assert {row["setting"] for row in rows} == {"sound", "one_faulty"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["training.epoch=3"], "training.epoch: did you mean training.epochs?"),
        (["modl=compact_vgg"], "modl: did you mean model?"),
        (["model=compact_vg"], "Could not find 'model/compact_vg'"),
        (["dataset=gtsrb"], "data set gtsrb is not on disk. Looked in"),
        (["dataset=image_folder", "dataset.root=nowhere"], "nowhere"),
        (["training.loss=crossentropy"], "recipe.loss must be one of cross_entropy"),
        (["fault=noisy_inputs"], "'noisy_inputs' acts on test inputs"),
        (["model=compact_vgg", "model.channels=3"], "'compact_vgg' cannot take inputs of shape (1, 8, 8)"),
        (["device=cuda:99"], "device 'cuda:99' cannot be used here"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_mistakes_get_one_clear_error(tmp_path: Path, arguments: list[str], message: str) -> None:
    assert message in fail(tmp_path, "train_model", *arguments)


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        (
            "evaluate_live",
            ["+distance=fast"],
            "evaluate_live takes no distance=: a saved guard keeps its distance; give",
        ),
        (
            "evaluate_cached",
            ["predictor=kde"],
            "takes no predictor=: a saved guard keeps its predictor; give it to demo",
        ),
        ("train_guard", ["launcher.workers=2"], "train_guard takes no launcher=; give it to cache_distances"),
        ("cache_distances", ["launcher.workers=2"], "goes with launcher=processes or launcher=ray: give that, too"),
        ("cache_distances", ["predictor=kde"], "cache_distances takes no predictor=; give it to"),
        ("evaluate_live", ["+limit.tset=5"], "evaluate_live has no setting limit.tset and would not read it"),
        ("train_model", ["-m", "+epochs=3"], "train_model has no setting 'epochs' and would not read it"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_no_setting_is_ignored_without_a_word(tmp_path: Path, script: str, arguments: list[str], message: str) -> None:
    assert message in fail(tmp_path, script, *arguments)


def test_what_hydra_and_faults_may_have_added_is_taken(tmp_path: Path) -> None:
    added = ["+hydra.job.env_set.A=b", "+faults.mine._target_=deepfailguard.faults.training_data.TooLittleData"]
    assert "label_noise.rte" in fail(tmp_path, "train_model", *added, "fault=label_noise", "faults.label_noise.rte=1")


def test_a_missing_guard_is_told_with_those_that_there_are(tmp_path: Path) -> None:
    guard = tmp_path / "outputs" / "demo" / "guards" / "digits" / "demo"
    for folder, name in ((guard, "demo"), (tmp_path / "outputs" / "elsewhere", "mine")):
        folder.mkdir(parents=True)
        (folder / "guard.json").write_text("{}")
        told = fail(tmp_path, "evaluate_live", f"name={name}")
        assert f"outputs/guards/digits/{name} holds no guard; below outputs there are" in told
        assert "\n  outputs/demo/guards/digits/demo: paths.guards=outputs/demo/guards name=demo\n" in told
        assert f"make one with: python scripts/train_guard.py name={name}" in told
    assert "\n  outputs/elsewhere\n" in told
    named = ["paths.guards=outputs/demo/guards", "name=demo"]
    assert "is not a file that deepfailguard wrote" in fail(tmp_path, "evaluate_live", *named)


def test_a_misspelt_version_is_named_with_the_closest(trained: Path) -> None:
    error = fail(trained, "train_guard", "name=x", "ensemble.versions=[compact_vg-s0]", "dataset.limit=400")
    assert "no version 'compact_vg-s0'" in error
    assert "did you mean compact_vgg-s0" in error


def test_a_version_with_a_flipped_bit_is_refused(trained: Path, tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    (pool / "digits").mkdir(parents=True)
    source = next((trained / "mymodel/trained/digits").glob("compact_vgg-s0@*"))
    target = pool / "digits" / source.name
    target.mkdir()
    for file in source.iterdir():
        content = bytearray(file.read_bytes())
        if file.suffix == ".safetensors":
            content[-100] ^= 8
        (target / file.name).write_bytes(content)
    error = fail(tmp_path, "cache_distances", f"paths.pool={pool}", "dataset.limit=400", *LIMIT)
    assert "weights.safetensors was changed after it was written" in error
