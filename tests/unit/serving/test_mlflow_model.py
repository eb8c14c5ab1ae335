import gc
import json
import os

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # before MLflow is imported: tests speak to nobody

import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import deepfailguard
from deepfailguard.errors import ConfigurationError, CorruptFileError, DataFormatError, SignatureError
from deepfailguard.guard.guarded import GuardedPredictor
from deepfailguard.guard.manifest import make_keys, sign_guard
from deepfailguard.identity import describe, weights_fingerprint
from deepfailguard.predictor.kde import KdePredictor
from deepfailguard.serving.mlflow_model import GuardModel, log_guard, save_guard_model
from deepfailguard.types import Bounds
from deepfailguard.versions.card import IdentityCard
from deepfailguard.versions.onnx_model import OnnxModel, onnx_version
from deepfailguard.versions.version import Version
from tests.examples import CLASSES, SIZE, TinyNet, bars, template_model

with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)
    import mlflow.pyfunc
    from mlflow.exceptions import MlflowException

NAMES = tuple(f"bar {k}" for k in range(CLASSES))
SHAPE = (1, SIZE, SIZE)
IMAGES = bars(12, seed=9).images
TRUSTED = ("deepfailguard", "tests")


def template(name: str, seed: int, noise: float) -> Version:
    """A classifier of the bars in ONNX form, with a card."""
    model = template_model(seed, noise)
    weights = [
        numpy_helper.from_array(model.weight.detach().numpy(), "weight"),
        numpy_helper.from_array(model.bias.detach().numpy(), "bias"),
    ]
    made = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("Gemm", ["f", "weight", "bias"], ["y"], transB=1)],
        "template",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *SHAPE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", CLASSES])],
        weights,
    )
    model_proto: onnx.ModelProto = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return onnx_version(OnnxModel(model_proto.SerializeToString()), name, NAMES, SHAPE)


def tiny(name: str) -> Version:
    """A network of torch that a guard can rebuild."""
    torch.manual_seed(1)
    model = TinyNet().build(CLASSES)
    fingerprint = weights_fingerprint(model)
    card = IdentityCard(
        name=name,
        key=fingerprint,
        dataset="bars",
        source_fingerprint="",
        train_fingerprint="",
        classes=NAMES,
        input_shape=SHAPE,
        bounds=Bounds(),
        architecture=describe(TinyNet()),
        recipe={},
        seed=1,
        receipts=(),
        outcome="completed",
        metrics={},
        curves={},
        fingerprint=fingerprint,
    )
    return Version(name, model, CLASSES, Bounds(), fingerprint, card)


def fit(*versions: Any, **settings: Any) -> GuardedPredictor:
    data = bars(150, seed=3)
    return GuardedPredictor.fit(versions, (data.images, data.labels), classes=NAMES, **settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A guard of two ONNX versions and one of torch."""
    guard = tmp_path_factory.mktemp("mlflow") / "guard"
    fit(template("good", 1, 0.1), template("fair", 2, 0.5), tiny("tiny")).save(guard)
    return guard


@pytest.fixture(scope="module")
def model_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mlflow") / "model"
    save_guard_model(folder, path, trusted=TRUSTED)
    return path


def test_it_tells_what_the_guard_tells(folder: Path, model_folder: Path) -> None:
    images = IMAGES.clone()
    images[4, 0, 0, 0] = torch.nan
    verdict = GuardedPredictor.load(folder, trusted=TRUSTED)(images)
    came = mlflow.pyfunc.load_model(str(model_folder)).predict(images.numpy())
    for name in (
        "labels",
        "abstained",
        "failure_probability",
        "probabilities",
        "version_labels",
        "version_failure_probability",
        "weights",
    ):
        assert np.array_equal(came[name], getattr(verdict, name).numpy()), name
    assert not came["degraded"].any()
    assert came["labels"][4] == -1
    assert came["abstained"][4]
    assert "NaN" in came["problems"][4]
    assert (came["problems"] != "").sum() == 1
    assert set(came["ground"]) == {verdict.ground}


def test_its_answers_are_those_of_its_signature(model_folder: Path) -> None:
    loaded = mlflow.pyfunc.load_model(str(model_folder))
    came = loaded.predict(IMAGES.numpy())
    told = loaded.metadata.signature.outputs.inputs
    assert [each.name for each in told] == list(came)
    assert json.dumps({name: array.tolist() for name, array in came.items()}, allow_nan=False)  # as it is served
    for each in told:
        assert came[each.name].dtype.kind == each.type.kind, each.name
        assert came[each.name].shape == (len(IMAGES), *each.shape[1:]), each.name
        assert each.type.kind == "U" or came[each.name].dtype == each.type, each.name


def test_another_process_answers_the_same_bits(folder: Path, model_folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", IMAGES.numpy())
    code = (
        "import sys, warnings\n"
        "warnings.simplefilter('ignore')\n"
        "import mlflow, numpy, torch\n"
        "torch.set_num_threads(1)\n"
        "model = mlflow.pyfunc.load_model(sys.argv[1])\n"
        "numpy.savez(sys.argv[3], **model.predict(numpy.load(sys.argv[2])))\n"
    )
    arguments = [sys.executable, "-c", code, str(model_folder), str(tmp_path / "images.npy"), str(tmp_path / "out.npz")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    verdict = GuardedPredictor.load(folder, trusted=TRUSTED)(IMAGES)
    with np.load(tmp_path / "out.npz") as came:
        for name in ("labels", "failure_probability", "probabilities", "weights"):
            assert np.array_equal(came[name], getattr(verdict, name).numpy()), name


def test_the_model_holds_the_guard_and_neither_pickle_nor_code(folder: Path, model_folder: Path) -> None:
    files = {path.relative_to(model_folder) for path in model_folder.rglob("*") if path.is_file()}
    assert {path.suffix for path in files} <= {"", ".json", ".yaml", ".txt", ".safetensors"}
    ours = {Path("data", "guard", path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert ours < files
    for path in files:  # a pickle of protocol 2 or later begins so, a zip of torch.save ends so
        content = (model_folder / path).read_bytes()
        assert not (content.startswith(b"\x80") and content.endswith(b".")), path
        assert not content.startswith(b"PK"), path


def test_it_says_what_it_needs_and_what_it_is(model_folder: Path) -> None:
    needed = (model_folder / "requirements.txt").read_text().split()
    assert f"deepfailguard=={deepfailguard.__version__}" in needed
    assert f"torch=={torch.__version__.partition('+')[0]}" in needed
    assert any(each.startswith("onnxruntime>=") for each in needed)
    loaded = mlflow.pyfunc.load_model(str(model_folder))
    assert loaded.metadata.metadata["versions"] == ["good", "fair", "tiny"]
    assert loaded.metadata.metadata["classes"] == list(NAMES)
    assert loaded.predict(loaded.input_example)["labels"].shape == (1,)


@pytest.mark.parametrize(
    ("images", "text"),
    [
        (np.zeros((2, 1, SIZE, SIZE + 1), np.float32), r"\(2, 1, 8, 9\) does not match expected shape \(-1, 1, 8, 8\)"),
        (np.zeros((SIZE, SIZE), np.float32), r"\(8, 8\) does not match"),
        (np.zeros((2, *SHAPE), np.float64), "float64 does not match expected dtype float32"),
        ("images", "numpy array"),
    ],
)
def test_other_inputs_are_refused(model_folder: Path, images: Any, text: str) -> None:
    with pytest.raises(MlflowException, match=text):
        mlflow.pyfunc.load_model(str(model_folder)).predict(images)


def test_without_mlflow_before_it_inputs_are_checked_all_the_same(folder: Path) -> None:
    guard = GuardedPredictor.load(folder, trusted=TRUSTED)
    with pytest.raises(DataFormatError, match=r"expected images of shape \(1, 8, 8\)"):
        GuardModel(guard, guard.saved.card).predict(np.zeros((2, 1, 3, 3), np.float32))


def test_no_images_give_no_rows(model_folder: Path) -> None:
    came = mlflow.pyfunc.load_model(str(model_folder)).predict(IMAGES[:0].numpy())
    assert {len(array) for array in came.values()} == {0}
    assert came["probabilities"].shape == (0, CLASSES)


def test_it_keeps_answering_without_a_version_and_says_so(model_folder: Path) -> None:
    loaded = mlflow.pyfunc.load_model(str(model_folder))
    runtime = loaded._model_impl.answer
    runtime.set_aside("fair", "a test")
    came = loaded.predict(IMAGES.numpy())
    assert came["degraded"].all()
    assert set(came["ground"]) <= {"silent versions", "versions left"}  # the latter once it has learned anew
    assert (came["version_labels"][:, 1] == -1).all()
    assert (came["weights"][:, 1] == 0).all()
    assert (came["labels"] >= 0).all()


def test_how_it_runs_is_set_where_it_is_loaded(model_folder: Path) -> None:
    settings = {"deadline": 60.0, "least_versions": 3}
    loaded = mlflow.pyfunc.load_model(str(model_folder), model_config={"settings": settings})
    assert not loaded.predict(IMAGES.numpy())["abstained"].all()
    loaded._model_impl.answer.set_aside("fair", "a test")
    came = loaded.predict(IMAGES.numpy())
    assert came["abstained"].all()
    assert set(came["ground"]) == {"too few versions"}


def test_what_ran_ends_with_the_model(model_folder: Path) -> None:
    loaded = mlflow.pyfunc.load_model(str(model_folder))
    runtime = loaded._model_impl.answer
    loaded.predict(IMAGES.numpy())
    del loaded
    gc.collect()
    with pytest.raises(ConfigurationError, match="closed"):
        runtime(IMAGES)


def test_arrays_that_may_not_be_written_to_are_taken(model_folder: Path) -> None:
    images = IMAGES.numpy().copy()
    images.flags.writeable = False
    assert mlflow.pyfunc.load_model(str(model_folder)).predict(images)["labels"].shape == (len(IMAGES),)


def test_a_guard_must_be_signed_where_that_is_demanded(folder: Path, model_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    make_keys(tmp_path / "private.pem", tmp_path / "public.pem")
    config = {"public_key": str(tmp_path / "public.pem")}
    with pytest.raises(SignatureError):
        mlflow.pyfunc.load_model(str(model_folder), model_config=config)
    subprocess.run(["cp", "-r", str(folder), str(tmp_path / "guard")], check=True)
    sign_guard(tmp_path / "guard", tmp_path / "private.pem")
    save_guard_model(tmp_path / "guard", tmp_path / "model", trusted=TRUSTED)
    signed = mlflow.pyfunc.load_model(str(tmp_path / "model"), model_config=config)
    assert not signed.predict(IMAGES.numpy())["degraded"].any()


def test_a_damaged_model_is_not_loaded(model_folder: Path, tmp_path: Path) -> None:
    subprocess.run(["cp", "-r", str(model_folder), str(tmp_path / "model")], check=True)
    weights = next((tmp_path / "model").rglob("versions/0-*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-10] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CorruptFileError, match=r"0-good\.safetensors was changed"):
        mlflow.pyfunc.load_model(str(tmp_path / "model"))


def test_a_damaged_guard_is_not_packaged(folder: Path, tmp_path: Path) -> None:
    subprocess.run(["cp", "-r", str(folder), str(tmp_path / "guard")], check=True)
    next((tmp_path / "guard" / "versions").glob("1-*")).write_bytes(b"nothing")
    with pytest.raises(CorruptFileError):
        save_guard_model(tmp_path / "guard", tmp_path / "model", trusted=TRUSTED)
    assert not (tmp_path / "model").exists()


def test_a_guard_that_nobody_could_load_is_not_packaged(tmp_path: Path) -> None:
    fit(template_model(1, 0.3), template_model(2, 0.5)).save(tmp_path / "guard")
    with pytest.raises(ConfigurationError, match=r"Affine-0, Affine-1: not trained by .* export it to ONNX"):
        save_guard_model(tmp_path / "guard", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_only_packages_that_are_trusted_are_packaged(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="not trusted"):
        save_guard_model(folder, tmp_path / "model")


def test_distances_that_were_not_found_are_told_apart(tmp_path: Path) -> None:
    guard = fit(template("good", 1, 0.1), tiny("tiny"), predictor=KdePredictor())
    verdict = guard(IMAGES)
    assert verdict.found[3, 1]
    found = verdict.found.clone()
    found[3, 1] = False
    came = GuardModel(lambda _: replace(verdict, found=found), guard.saved.card).predict(IMAGES.numpy())
    assert came["distance"].dtype == np.float32
    assert np.array_equal(came["found"], found.numpy())
    assert np.array_equal(came["distance"], torch.where(found, verdict.distance, 0.0).numpy())


def test_it_is_logged_and_loaded_by_its_uri(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow's other stores want a database
    monkeypatch.chdir(tmp_path)
    before = mlflow.get_tracking_uri()
    request.addfinalizer(lambda: mlflow.set_tracking_uri(before))
    mlflow.set_tracking_uri((tmp_path / "runs").as_uri())
    with mlflow.start_run():
        uri = log_guard(folder, "guard", trusted=TRUSTED, pip_requirements=["torch"])
    came = mlflow.pyfunc.load_model(uri).predict(IMAGES.numpy())
    verdict = GuardedPredictor.load(folder, trusted=TRUSTED)(IMAGES)
    assert np.array_equal(came["failure_probability"], verdict.failure_probability.numpy())
