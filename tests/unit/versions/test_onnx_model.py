import copy
import io
import multiprocessing
import pickle
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from deepfailguard.boundary.base import DistanceEstimator
from deepfailguard.boundary.deepfool import FoolboxDeepFool
from deepfailguard.boundary.estimates.first_order import FirstOrderDistance
from deepfailguard.boundary.estimates.learned import LearnedDistance
from deepfailguard.boundary.search.estimator import BoundarySearch
from deepfailguard.errors import ConfigurationError, CorruptFileError, WrongOutputError
from deepfailguard.guard.asking import ask
from deepfailguard.guard.guarded import GuardedPredictor
from deepfailguard.identity import weights_fingerprint
from deepfailguard.predictor.joint.predictor import JointPredictor
from deepfailguard.predictor.kde import KdePredictor
from deepfailguard.store import load_tensors, save_tensors
from deepfailguard.types import Bounds
from deepfailguard.versions import onnx_model
from deepfailguard.versions.onnx_model import OnnxModel, onnx_version
from deepfailguard.versions.pool import Pool
from deepfailguard.versions.version import Version
from tests.examples import CLASSES, SIZE, Affine, bars, template_model

IMAGES = bars(20, seed=9).images
NAMES = tuple(f"bar {k}" for k in range(CLASSES))


def graph(
    model: Affine,
    *,
    batch: int | str = "N",
    inputs: tuple[tuple[str, int], ...] = (("x", TensorProto.FLOAT),),
    outputs: tuple[str, ...] = ("y",),
    rank: int = 4,
) -> onnx.ModelProto:
    """The model in ONNX; `p` is its softmax, `f` what goes into its layer, `k` its label."""
    shape = [batch, 1, SIZE, SIZE] if rank == 4 else [batch, SIZE**2]
    kinds = {"y": TensorProto.FLOAT, "p": TensorProto.FLOAT, "f": TensorProto.FLOAT, "k": TensorProto.INT64}
    widths: dict[str, list[Any]] = {"y": [batch, CLASSES], "p": [batch, CLASSES], "f": [batch, SIZE**2], "k": [batch]}
    nodes = [
        helper.make_node("Flatten", ["x"], ["f"]),
        helper.make_node("Gemm", ["f", "weight", "bias"], ["y"], transB=1),
        helper.make_node("Softmax", ["y"], ["p"], axis=1),
        helper.make_node("ArgMax", ["y"], ["k"], axis=1, keepdims=0),
    ]
    weights = [
        numpy_helper.from_array(model.weight.detach().numpy(), "weight"),
        numpy_helper.from_array(model.bias.detach().numpy(), "bias"),
    ]
    given = [helper.make_tensor_value_info(name, kind, shape) for name, kind in inputs]
    told = [helper.make_tensor_value_info(name, kinds[name], widths[name]) for name in outputs]
    made = helper.make_graph(nodes, "affine", given, told, weights)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def content(model: Affine, **settings: Any) -> bytes:
    return bytes(graph(model, **settings).SerializeToString())


@pytest.fixture
def affine() -> Affine:
    return template_model(3, noise=0.3)


def close(came: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(came, expected.detach(), rtol=1e-5, atol=1e-5)


# What it answers


@pytest.mark.parametrize("batch", ["N", 1, 4, 32])
@pytest.mark.parametrize("count", [1, 4, 5, 20])
def test_it_answers_as_torch_does(affine: Affine, batch: int | str, count: int) -> None:
    model = OnnxModel(content(affine, batch=batch))
    came = model(IMAGES[:count])
    close(came, affine(IMAGES[:count]))
    assert came.dtype == torch.float32


@pytest.mark.parametrize("batch", ["N", 4])
def test_no_images_give_no_rows(affine: Affine, batch: int | str) -> None:
    assert OnnxModel(content(affine, batch=batch))(IMAGES[:0]).shape == (0, CLASSES)


def test_images_may_be_strided_or_of_another_precision(affine: Affine) -> None:
    model, turned = OnnxModel(content(affine)), IMAGES.transpose(2, 3)
    close(model(turned), affine(turned.contiguous()))
    close(model(IMAGES.double()), affine(IMAGES))
    close(model(IMAGES.clone().requires_grad_()), affine(IMAGES))


def test_a_network_that_torch_exported(tmp_path: Path) -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * SIZE**2, CLASSES)
    ).eval()
    path = tmp_path / "network.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        torch.onnx.export(
            network,
            (IMAGES[:2],),
            path,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            external_data=False,
            verbose=False,
        )
    close(OnnxModel(path)(IMAGES), network(IMAGES))


def test_probabilities_become_logits(affine: Affine) -> None:
    model = OnnxModel(content(affine, outputs=("p",)), probabilities=True)
    close(model(IMAGES), affine(IMAGES).log_softmax(1))


def test_a_probability_of_zero_is_a_finite_logit(affine: Affine) -> None:
    sure = Affine(affine.weight * 1e4, affine.bias)
    logits = OnnxModel(content(sure, outputs=("p",)), probabilities=True)(IMAGES)
    assert logits.isfinite().all()
    assert torch.equal(logits.argmax(1), sure(IMAGES).argmax(1))


def test_logits_are_not_taken_for_probabilities(affine: Affine) -> None:
    with pytest.raises(WrongOutputError, match="leave out probabilities=True"):
        OnnxModel(content(affine), probabilities=True)(IMAGES)


def test_nan_comes_out_as_nan(affine: Affine) -> None:
    affine.bias.data[1] = torch.nan
    assert OnnxModel(content(affine, outputs=("p",)), probabilities=True)(IMAGES).isnan().all()


def test_an_output_is_chosen_by_name(affine: Affine) -> None:
    several = content(affine, outputs=("p", "y", "k"))
    with pytest.raises(ConfigurationError, match=r"'p' .*'y' .*'k' .*name one"):
        OnnxModel(several)
    with pytest.raises(ConfigurationError, match=r"an output 'logits', got 'p'"):
        OnnxModel(several, output="logits")
    with pytest.raises(ConfigurationError, match=r"'k' tensor\(int64\)"):
        OnnxModel(several, output="k")
    close(OnnxModel(several, output="y")(IMAGES), affine(IMAGES))


def test_a_quantised_network(affine: Affine, tmp_path: Path) -> None:
    quantization = pytest.importorskip("onnxruntime.quantization")

    class Calibration(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.left = [{"x": image[None].numpy()} for image in bars(50, seed=5).images]

        def get_next(self) -> dict[str, Any] | None:
            return self.left.pop() if self.left else None

    onnx.save(graph(affine), tmp_path / "float.onnx")
    quantization.quantize_static(tmp_path / "float.onnx", tmp_path / "int8.onnx", Calibration())
    stored = {each.data_type for each in onnx.load(tmp_path / "int8.onnx").graph.initializer}
    assert stored & {TensorProto.INT8, TensorProto.UINT8}
    assert TensorProto.FLOAT not in {
        each.data_type for each in onnx.load(tmp_path / "int8.onnx").graph.initializer if len(each.dims) == 2
    }
    images, model = bars(200, seed=6).images, OnnxModel(tmp_path / "int8.onnx")
    logits = model(images)
    assert float((logits.argmax(1) == affine(images).argmax(1)).float().mean()) > 0.95
    assert not torch.allclose(logits, affine(images).detach(), atol=1e-5)
    assert torch.equal(torch.cat([model(each) for each in images.split(7)]), logits)


# What it refuses


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"inputs": (("x", TensorProto.FLOAT), ("z", TensorProto.FLOAT))}, "one input"),
        ({"inputs": (("x", TensorProto.DOUBLE),)}, "cannot open"),
        ({"rank": 2}, r"'x' tensor\(float\) \('N', 64\)"),
        ({"outputs": ("k",)}, "expected logits"),
    ],
)
def test_it_says_what_does_not_fit(affine: Affine, settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        OnnxModel(content(affine, **settings))


def test_a_batch_size_that_is_built_in_deeper_down_is_seen(affine: Affine) -> None:
    made = graph(affine)
    made.graph.node[0].CopyFrom(helper.make_node("Reshape", ["x", "shape"], ["f"]))
    made.graph.initializer.append(numpy_helper.from_array(np.array([-1, 2 * SIZE**2]), "shape"))
    made.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(np.zeros((CLASSES, 2 * SIZE**2), np.float32), made.graph.initializer[0].name)
    )
    with pytest.raises(WrongOutputError, match=r"returned \(2, 3\), expected logits \(4, classes\)"):
        OnnxModel(made.SerializeToString())(IMAGES[:4])


@pytest.mark.parametrize("source", [b"no model", b""])
def test_other_bytes_are_refused(source: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(source)
    for given in (source, tmp_path / "a.onnx", str(tmp_path / "a.onnx")):
        with pytest.raises(ConfigurationError, match="expected an ONNX model, got"):
            OnnxModel(given)


def test_a_missing_file_is_one() -> None:
    with pytest.raises(FileNotFoundError):
        OnnxModel("nowhere.onnx")


def test_weights_in_other_files_are_refused_even_where_they_could_be_found(
    affine: Affine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "split.onnx"
    onnx.save_model(graph(affine), path, save_as_external_data=True, location="split.bin", size_threshold=0)
    monkeypatch.chdir(tmp_path)  # ONNX Runtime looks here
    with pytest.raises(ConfigurationError, match=r"in one file.*external_data=False.*2 GB"):
        OnnxModel("split.onnx")
    onnx.save_model(onnx.load(path), tmp_path / "one.onnx")  # as the message says
    close(OnnxModel("one.onnx")(IMAGES), affine(IMAGES))


def test_a_model_that_is_too_large_is_refused(affine: Affine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_model, "_LARGEST", 100)
    with pytest.raises(ConfigurationError, match="at most 2 GB"):
        OnnxModel(content(affine))


def test_images_of_another_size_lose_the_version_alone(affine: Affine) -> None:
    version = Version.of(OnnxModel(content(affine)), "onnx", CLASSES)
    answers = ask(version, None, torch.rand(3, 1, SIZE, SIZE + 1))
    assert answers.health.answered == 0
    assert "Got: 9 Expected: 8" in answers.health.problem


# What it is made of


def test_every_bit_and_setting_is_in_the_fingerprint(affine: Affine) -> None:
    several = content(affine, outputs=("p", "y"))
    prints = {
        weights_fingerprint(OnnxModel(several, output="y")),
        weights_fingerprint(OnnxModel(several, output="p")),
        weights_fingerprint(OnnxModel(several, output="p", probabilities=True)),
        weights_fingerprint(OnnxModel(content(affine))),
        weights_fingerprint(OnnxModel.empty()),
    }
    assert len(prints) == 5
    model = OnnxModel(content(affine))
    before = weights_fingerprint(model)
    model.onnx[len(model.onnx) // 2] ^= 1
    assert weights_fingerprint(model) != before
    model.onnx[len(model.onnx) // 2] ^= 1
    assert weights_fingerprint(model) == before


def test_it_is_loaded_into_an_empty_module_with_its_settings(affine: Affine, tmp_path: Path) -> None:
    several = OnnxModel(content(affine, outputs=("y", "p")), output="p", probabilities=True)
    save_tensors(tmp_path / "a.safetensors", several.state_dict())
    loaded = OnnxModel.empty()
    with pytest.raises(ConfigurationError, match="holds no model yet"):
        loaded(IMAGES)
    loaded.load_state_dict(load_tensors(tmp_path / "a.safetensors").tensors)
    assert torch.equal(loaded(IMAGES), several(IMAGES))
    assert weights_fingerprint(loaded) == weights_fingerprint(several)


@pytest.mark.parametrize("assign", [False, True])
def test_other_bytes_make_another_session(affine: Affine, assign: bool) -> None:
    other = template_model(4, noise=2.0)
    model = OnnxModel(content(affine))
    model(IMAGES)
    model.load_state_dict(OnnxModel(content(other)).state_dict(), assign=assign)
    close(model(IMAGES), other(IMAGES))
    longer = OnnxModel(content(affine, outputs=("y", "p")), output="y")
    model.load_state_dict(longer.state_dict(), assign=assign)
    close(model(IMAGES), affine(IMAGES))


def test_the_session_is_kept_while_the_bytes_are_the_same(affine: Affine) -> None:
    model = OnnxModel(content(affine))
    opened = model._opened
    model(IMAGES)
    model.eval().float()
    model(IMAGES)
    assert model._opened is opened


def test_bytes_that_are_written_to_make_another_session(affine: Affine) -> None:
    """Whoever injects a fault into the weights gets the answers of the faulty model."""
    model, whole = OnnxModel(content(affine)), content(affine)
    row = affine.weight.detach()[1].numpy().tobytes()
    start = whole.index(row)
    model.onnx[start : start + len(row)] = 0
    affine.weight.data[1] = 0.0
    close(model(IMAGES), affine(IMAGES))


def test_a_state_of_another_kind_is_refused(affine: Affine) -> None:
    with pytest.raises(RuntimeError, match="size mismatch"):
        OnnxModel(content(affine)).load_state_dict({"onnx": torch.rand(3), "settings": torch.rand(2)})
    with pytest.raises(RuntimeError, match="Missing key"):
        OnnxModel.empty().load_state_dict(affine.state_dict())


def test_it_is_copied(affine: Affine) -> None:
    model = OnnxModel(content(affine))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301
        assert torch.equal(twin(IMAGES), model(IMAGES))
        twin.onnx.zero_()
    close(model(IMAGES), affine(IMAGES))


def test_it_works_inside_of_other_modules(affine: Affine) -> None:
    whole = nn.Sequential(nn.Identity(), OnnxModel(content(affine)))
    empty = nn.Sequential(nn.Identity(), OnnxModel.empty())
    stored = io.BytesIO()
    torch.save(whole.state_dict(), stored)
    stored.seek(0)
    empty.load_state_dict(torch.load(stored, weights_only=True))
    close(empty(IMAGES), affine(IMAGES))


def answer(model: nn.Module, images: Tensor, answers: Any) -> None:
    answers.put(model(images).numpy())


@pytest.mark.parametrize("start", ["spawn", "fork"])
def test_another_process_answers_the_same(affine: Affine, start: str) -> None:
    model = OnnxModel(content(affine))
    expected, context = model(IMAGES).numpy(), multiprocessing.get_context(start)
    answers = context.Queue()
    process = context.Process(target=answer, args=(model, IMAGES, answers))  # type: ignore[attr-defined]
    process.start()
    try:
        assert np.array_equal(answers.get(timeout=120), expected)
    finally:
        process.join(120)
        answers.close()
    assert process.exitcode == 0


def test_threads_get_the_same_answers(affine: Affine) -> None:
    model, came = OnnxModel(content(affine)), dict[int, Tensor]()
    threads = [threading.Thread(target=lambda n=n: came.update({n: model(IMAGES)})) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(came) == 4
    assert all(torch.equal(each, came[0]) for each in came.values())


def test_it_runs_on_cuda_where_both_can() -> None:
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert onnx_model._providers(torch.device("cuda", 1), both)[0] == ("CUDAExecutionProvider", {"device_id": "1"})
    assert onnx_model._providers(torch.device("cuda", 1), both[1:]) == ["CPUExecutionProvider"]
    assert onnx_model._providers(torch.device("cpu"), both) == ["CPUExecutionProvider"]


def test_it_takes_the_threads_that_torch_has(affine: Affine) -> None:
    torch.set_num_threads(2)
    try:
        options = OnnxModel(content(affine))._open().session.get_session_options()
    finally:
        torch.set_num_threads(1)
    assert options.intra_op_num_threads == 2


# In a guard


Fit = Callable[..., GuardedPredictor]


@pytest.fixture
def fit(affine: Affine) -> Fit:
    data = bars(150, seed=3)

    def fitted(onnx: Any, **settings: Any) -> GuardedPredictor:
        models = [
            Version.of(template_model(1, 0.3), "a", CLASSES),
            Version.of(template_model(2, 0.5), "b", CLASSES),
            onnx,
        ]
        return GuardedPredictor.fit(models, (data.images, data.labels), **settings)

    return fitted


@pytest.mark.parametrize("predictor", [JointPredictor(), KdePredictor()], ids=["joint", "kde"])
def test_a_guard_of_torch_and_onnx(affine: Affine, fit: Fit, predictor: Any, tmp_path: Path) -> None:
    guard = fit(Version.of(OnnxModel(content(affine)), "onnx", CLASSES), predictor=predictor)
    test = bars(60, seed=4)
    verdict = guard(test.images)
    assert not verdict.degraded
    assert torch.equal(verdict.version_labels[:, 2], affine(test.images).argmax(1))
    assert float((verdict.labels == test.labels).double().mean()) > 0.9
    guard.save(tmp_path / "guard")
    assert not list(tmp_path.rglob("*.onnx"))
    with pytest.raises(ConfigurationError, match="pass the modules"):
        GuardedPredictor.load(tmp_path / "guard")
    loaded = GuardedPredictor.load(tmp_path / "guard", [template_model(), template_model(), OnnxModel.empty()])
    again = loaded(test.images)
    assert torch.equal(again.labels, verdict.labels)
    assert torch.equal(again.failure_probability, verdict.failure_probability)


def test_a_distance_that_is_measured_without_gradients_is_one(affine: Affine, fit: Fit) -> None:
    """The boundary of an affine classifier is known: what is searched by decisions must not be nearer."""
    guard = fit(Version.of(OnnxModel(content(affine)), "onnx", CLASSES), predictor=KdePredictor())
    few = IMAGES[:3]
    verdict = guard(few)
    logits, rows = affine(few), torch.arange(3)
    labels = logits.argmax(1)
    gaps = logits[rows, labels][:, None] - logits
    slopes = (affine.weight[labels][:, None] - affine.weight).norm(dim=2)
    exact = (gaps / slopes.clamp_min(1e-9)).masked_fill(slopes == 0, torch.inf).amin(1)
    assert verdict.found[:, 2].all()
    assert (verdict.distance[:, 2] >= exact * (1 - 1e-3)).all()
    assert (verdict.distance[:, 2] <= exact * 1.5).all()


@pytest.mark.parametrize("distance", [FirstOrderDistance(), FoolboxDeepFool()])
def test_what_needs_gradients_says_so_and_names_what_needs_none(
    affine: Affine, fit: Fit, distance: DistanceEstimator
) -> None:
    version = Version.of(OnnxModel(content(affine)), "onnx", CLASSES)
    with pytest.raises(WrongOutputError, match=r"version 'onnx' .* no gradient .* LearnedDistance"):
        fit(version, predictor=KdePredictor(), distance=distance)
    guard = fit(version, predictor=KdePredictor(), distance=LearnedDistance(BoundarySearch("fast")))
    assert not guard(IMAGES).degraded


def test_a_version_with_a_card_needs_no_help_to_be_loaded(affine: Affine, tmp_path: Path) -> None:
    data = bars(150, seed=3)
    versions = [
        onnx_version(OnnxModel(content(model)), name, NAMES, (1, SIZE, SIZE))
        for name, model in {"a": affine, "b": template_model(1, 0.3)}.items()
    ]
    guard = GuardedPredictor.fit(versions, (data.images, data.labels), classes=NAMES)
    guard.save(tmp_path / "guard")
    loaded = GuardedPredictor.load(tmp_path / "guard")
    assert torch.equal(loaded(IMAGES).failure_probability, guard(IMAGES).failure_probability)
    kept = next((tmp_path / "guard" / "versions").glob("0-*"))
    damaged = bytearray(kept.read_bytes())
    damaged[-10] ^= 1
    kept.write_bytes(damaged)
    with pytest.raises(CorruptFileError):
        GuardedPredictor.load(tmp_path / "guard")


def test_a_version_with_a_card_can_be_filed_in_a_pool(affine: Affine, tmp_path: Path) -> None:
    version = onnx_version(OnnxModel(content(affine)), "onnx", NAMES, (1, SIZE, SIZE), Bounds(-1.0, 1.0))
    assert version.card is not None
    pool = Pool(tmp_path)
    pool.save(version.model, version.card)
    loaded = pool.load(version.card, torch.device("cpu"))
    assert loaded.fingerprint == version.fingerprint
    close(loaded.logits(IMAGES), affine(IMAGES))


def test_a_card_of_other_classes_is_refused(affine: Affine) -> None:
    with pytest.raises(WrongOutputError, match=r"\(1, 2\)"):
        onnx_version(OnnxModel(content(affine)), "onnx", ("one", "two"), (1, SIZE, SIZE))
