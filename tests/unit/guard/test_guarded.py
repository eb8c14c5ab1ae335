import copy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from deepfailguard.decision.rules import majority_vote
from deepfailguard.errors import (
    ConfigurationError,
    CorruptFileError,
    DataFormatError,
    VersionNotFoundError,
    WrongOutputError,
)
from deepfailguard.guard.guarded import GuardedPredictor
from deepfailguard.guard.loading import load_version
from deepfailguard.identity import weights_fingerprint
from deepfailguard.predictor.kde import KdePredictor
from deepfailguard.predictor.prior import PriorPredictor
from deepfailguard.types import Bounds, Distances
from tests.examples import CLASSES, TinyNet, bars, template_model


class Broken(nn.Module):
    """Works until it is told to fail in one of the ways in which models fail."""

    def __init__(self, mode: str = "sound") -> None:
        super().__init__()
        self.sound = template_model(seed=5, noise=0.3)
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.sound(x)
        if self.mode == "raises":
            raise RuntimeError("out of memory")
        if self.mode == "nan":
            return logits * float("nan")
        if self.mode == "nan at bright images":
            bright = x.flatten(1).mean(1) > 0.145
            return torch.where(bright[:, None], float("nan"), logits)
        if self.mode == "shape":
            return logits[:, :2]
        if self.mode == "list":
            return [logits]  # type: ignore[return-value]
        return logits


@pytest.fixture
def models() -> dict[str, nn.Module]:
    return {"good": template_model(0, 0.1), "fair": template_model(1, 0.5), "breaks": Broken()}


@pytest.fixture
def guard(models: dict[str, nn.Module]) -> GuardedPredictor:
    calibration = bars(150, seed=3)
    return GuardedPredictor.fit(models, (calibration.images, calibration.labels), predictor=KdePredictor())


TEST = bars(60, seed=4)


def test_it_answers_and_explains(guard: GuardedPredictor) -> None:
    verdict = guard(TEST.images)
    assert not verdict.degraded
    assert float((verdict.labels == TEST.labels).double().mean()) > 0.8
    assert torch.allclose(verdict.weights.sum(1), torch.ones(60, dtype=torch.float64))
    assert torch.allclose(verdict.probabilities.sum(1), torch.ones(60, dtype=torch.float64))
    text = verdict.explain(0)
    assert all(name in text for name in ("good", "fair", "breaks"))
    assert f"'{int(verdict.labels[0])}'" in text
    assert text.count("flips it") == 3


def test_batches_of_one_and_of_many_agree(guard: GuardedPredictor) -> None:
    whole = guard(TEST.images)
    one_by_one = [guard(TEST.images[i : i + 1]) for i in range(10)]
    assert torch.equal(torch.cat([v.labels for v in one_by_one]), whole.labels[:10])
    single = torch.cat([v.failure_probability for v in one_by_one])
    torch.testing.assert_close(single, whole.failure_probability[:10], rtol=1e-4, atol=1e-6)


def test_an_empty_batch_is_answered(guard: GuardedPredictor) -> None:
    verdict = guard(TEST.images[:0])
    assert len(verdict) == 0
    assert verdict.probabilities.shape == (0, CLASSES)


@pytest.mark.parametrize("mode", ["raises", "nan", "shape", "list"])
def test_a_failing_version_is_isolated_and_shown(
    guard: GuardedPredictor, models: dict[str, nn.Module], mode: str
) -> None:
    models["breaks"].mode = mode  # type: ignore[assignment]
    verdict = guard(TEST.images)
    assert verdict.degraded
    assert [health.healthy for health in verdict.health] == [True, True, False]
    assert verdict.health[2].problem
    assert (verdict.version_labels[:, 2] == -1).all()
    assert (verdict.weights[:, 2] == 0).all()
    assert (verdict.labels >= 0).all()
    assert "breaks gave no answer: " in verdict.explain(0)
    assert "of 3 versions gave it." in verdict.explain(0)


def test_output_that_is_nan_for_some_inputs_loses_only_those(
    guard: GuardedPredictor, models: dict[str, nn.Module]
) -> None:
    models["breaks"].mode = "nan at bright images"  # type: ignore[assignment]
    bright = TEST.images.flatten(1).mean(1) > 0.145
    assert 0 < int(bright.sum()) < 60
    verdict = guard(TEST.images)
    assert torch.equal(verdict.version_labels[:, 2] == -1, bright)
    assert f"{int(bright.sum())} of 60" in verdict.health[2].problem


def test_nobody_answers(guard: GuardedPredictor, models: dict[str, nn.Module]) -> None:
    prior = PriorPredictor().with_state({"accuracy": torch.tensor([0.5], dtype=torch.float64)})
    saved = replace(guard.saved, predictor=prior, decision=majority_vote, distance=None)
    broken = GuardedPredictor([guard.versions[2]], saved)
    models["breaks"].mode = "raises"  # type: ignore[assignment]
    verdict = broken(TEST.images[:2])
    assert verdict.labels.tolist() == [-1, -1]
    assert verdict.abstained.all()
    assert "no version answered" in verdict.explain(0)
    assert broken.as_classifier()(TEST.images[:2]).isnan().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 7.0, -0.5])
def test_a_bad_input_loses_only_itself(guard: GuardedPredictor, value: float) -> None:
    images = TEST.images.clone()
    images[3, 0, 2, 2] = value
    verdict, clean = guard(images), guard(TEST.images)
    others = torch.arange(60) != 3
    assert verdict.labels[3] == -1
    assert verdict.abstained[3]
    assert verdict.explain(3) == "Input 3 was not judged: it has values that are NaN or outside [0.0, 1.0]."
    assert torch.equal(verdict.labels[others], clean.labels[others])
    assert not verdict.degraded  # the input is at fault, no version


def test_predict_and_drop_in_classifier_agree(guard: GuardedPredictor) -> None:
    labels = guard.predict(TEST.images)
    assert torch.equal(guard.predict_proba(TEST.images).argmax(1), labels)
    scores = guard.as_classifier()(TEST.images)
    assert torch.equal(scores.argmax(1), labels)
    assert torch.allclose(scores.exp().sum(1), torch.ones(60))


def test_models_stay_as_they_were(models: dict[str, nn.Module]) -> None:
    models["net"] = TinyNet().build(CLASSES).train()
    before = {name: weights_fingerprint(model) for name, model in models.items()}
    guard = GuardedPredictor.fit(models, bars(60, seed=3))
    guard(TEST.images)
    assert {name: weights_fingerprint(model) for name, model in models.items()} == before
    assert all(p.requires_grad and p.grad is None for model in models.values() for p in model.parameters())


def test_save_and_load_give_the_same_verdicts(
    guard: GuardedPredictor, models: dict[str, nn.Module], tmp_path: Path
) -> None:
    before = guard(TEST.images)
    guard.save(tmp_path / "guard")
    assert not [p for p in (tmp_path / "guard").rglob("*") if p.suffix in {".pt", ".pth", ".pkl", ".pickle"}]
    blank = [template_model(8), template_model(9), Broken()]
    again = GuardedPredictor.load(tmp_path / "guard", models=blank)(TEST.images)
    for name in (
        "labels",
        "failure_probability",
        "weights",
        "probabilities",
        "distance",
        "version_failure_probability",
    ):
        assert torch.equal(getattr(again, name), getattr(before, name)), name


def test_models_may_be_named_on_loading(guard: GuardedPredictor, tmp_path: Path) -> None:
    guard.save(tmp_path)
    blank = {"breaks": Broken(), "fair": template_model(9), "good": template_model(8)}
    again = GuardedPredictor.load(tmp_path, models=blank)
    assert torch.equal(again(TEST.images).failure_probability, guard(TEST.images).failure_probability)
    with pytest.raises(ConfigurationError, match="versions are good, fair, breaks; got models for other"):
        GuardedPredictor.load(tmp_path, models={"other": Broken()})


def test_saving_over_another_guard_leaves_nothing_of_it(guard: GuardedPredictor, tmp_path: Path) -> None:
    guard.save(tmp_path)
    GuardedPredictor.fit([template_model(0)], bars(60, seed=3)).save(tmp_path)
    assert [path.name for path in (tmp_path / "versions").iterdir()] == ["0-Affine-0.safetensors"]


def test_a_save_that_fails_leaves_the_guard_that_is_there(
    guard: GuardedPredictor, models: dict[str, nn.Module], tmp_path: Path
) -> None:
    before = guard(TEST.images).failure_probability
    guard.save(tmp_path)

    class Extra(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sound = template_model(0)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.sound(x)
            return logits

        def get_extra_state(self) -> str:
            return "no tensor"

    nameless = GuardedPredictor.fit(models, bars(60, seed=3), decision=lambda labels, failure_probability: None)
    with pytest.raises(ConfigurationError, match="<lambda> cannot be described"):
        nameless.save(tmp_path)
    with pytest.raises(AttributeError):
        GuardedPredictor.fit([Extra()], bars(60, seed=3)).save(tmp_path)
    again = GuardedPredictor.load(tmp_path, models=[template_model(8), template_model(9), Broken()])
    assert torch.equal(again(TEST.images).failure_probability, before)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_guard_can_be_copied_and_shown(models: dict[str, nn.Module], tmp_path: Path) -> None:
    guard = GuardedPredictor.fit(models, bars(100, seed=3), predictor=KdePredictor(), cache=tmp_path)
    twin = copy.deepcopy(guard)
    with torch.no_grad():
        next(guard.models[0].parameters()).zero_()  # the copy does not share weights
    assert twin(TEST.images).version_labels[:, 0].unique().numel() == CLASSES
    assert "good (" in repr(guard)
    assert "KdePredictor, highest_posterior" in repr(guard)


def test_loading_foreign_models_says_what_is_needed(guard: GuardedPredictor, tmp_path: Path) -> None:
    guard.save(tmp_path)
    with pytest.raises(ConfigurationError, match=r"pass the modules, GuardedPredictor\.load\(folder, models="):
        GuardedPredictor.load(tmp_path)
    with pytest.raises(ConfigurationError, match="the guard has 3 versions, got 1"):
        GuardedPredictor.load(tmp_path, models=[template_model(0)])
    with pytest.raises(FileNotFoundError, match="holds no guard"):
        GuardedPredictor.load(tmp_path / "nowhere")


def test_a_flipped_bit_in_a_saved_guard_is_noticed(guard: GuardedPredictor, tmp_path: Path) -> None:
    guard.save(tmp_path)
    path = tmp_path / "versions" / "1-fair.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 16
    path.write_bytes(content)
    with pytest.raises(CorruptFileError, match=r"fair\.safetensors"):
        GuardedPredictor.load(tmp_path, models=[template_model(0), template_model(1), Broken()])


def test_parts_of_two_guards_do_not_mix(guard: GuardedPredictor, models: dict[str, nn.Module], tmp_path: Path) -> None:
    guard.save(tmp_path / "one")
    GuardedPredictor.fit(models, bars(90, seed=8)).save(tmp_path / "two")
    source = tmp_path / "two" / "predictor.safetensors"
    (tmp_path / "one" / "predictor.safetensors").write_bytes(source.read_bytes())
    with pytest.raises(CorruptFileError, match=r"predictor\.safetensors was changed since the guard was saved"):
        GuardedPredictor.load(tmp_path / "one", models=list(models.values()))
    (tmp_path / "one" / "manifest.json").unlink()  # as before there were any: the card knows all the same
    with pytest.raises(CorruptFileError, match="belongs to another guard"):
        GuardedPredictor.load(tmp_path / "one", models=list(models.values()))


def test_a_model_of_another_architecture_is_refused(guard: GuardedPredictor, tmp_path: Path) -> None:
    guard.save(tmp_path)
    with pytest.raises(ConfigurationError, match="weights of version '1-fair' do not fit the given Sequential"):
        GuardedPredictor.load(tmp_path, models=[template_model(0), TinyNet().build(CLASSES), Broken()])


def test_one_version_is_loaded_alone_and_verified(guard: GuardedPredictor, tmp_path: Path) -> None:
    guard.save(tmp_path)
    card, fair = guard.saved.card, guard.versions[1]
    blank = template_model(9).train()
    loaded = load_version(tmp_path, card, 1, (), blank)
    assert (loaded.name, loaded.fingerprint, loaded.model) == ("fair", fair.fingerprint, blank)
    assert weights_fingerprint(blank) == fair.fingerprint
    assert not blank.training
    with pytest.raises(ConfigurationError, match="'fair' was not trained by deepfailguard"):
        load_version(tmp_path, card, 1, ())
    (tmp_path / "versions" / "0-good.safetensors").replace(tmp_path / "versions" / "1-fair.safetensors")
    with pytest.raises(CorruptFileError, match="holds other weights than the guard was fitted with"):
        load_version(tmp_path, card, 1, (), blank)
    with pytest.raises(VersionNotFoundError, match=r"lost a version: no file .*0-good\.safetensors"):
        load_version(tmp_path, card, 0, (), blank)


def test_names_that_no_file_can_have_are_saved_apart(models: dict[str, nn.Module], tmp_path: Path) -> None:
    odd = {"a/b": models["good"], "a_b": models["fair"], "../up": models["breaks"]}
    GuardedPredictor.fit(odd, bars(60, seed=3)).save(tmp_path / "guard")
    again = GuardedPredictor.load(tmp_path / "guard", models=[template_model(8), template_model(9), Broken()])
    assert again.saved.card.names == ("a/b", "a_b", "../up")
    assert [path.name for path in tmp_path.iterdir()] == ["guard"]


def test_a_version_that_works_in_place_reaches_no_other(models: dict[str, nn.Module]) -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sound = template_model(0, 0.2)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.sound(x)
            if not x.requires_grad:
                x.zero_()
            return logits

    calibration = bars(60, seed=3)
    before = calibration.images.clone()
    together = GuardedPredictor.fit({"in place": InPlace(), **models}, calibration)(TEST.images)
    assert torch.equal(calibration.images, before)
    alone = GuardedPredictor.fit(models, calibration)(TEST.images)
    assert torch.equal(together.version_labels[:, 1:], alone.version_labels)


def test_distances_of_another_model_are_refused(models: dict[str, nn.Module]) -> None:
    def stale(model: nn.Module, x: Tensor) -> Distances:
        return Distances(torch.zeros(len(x), dtype=torch.int64), torch.ones(len(x)), torch.ones(len(x)).bool())

    with pytest.raises(WrongOutputError, match="tell another answer than the model"):
        GuardedPredictor.fit(models, bars(60, seed=3), predictor=KdePredictor(), distance=stale)


def test_a_model_without_weights_cannot_be_cached(models: dict[str, nn.Module], tmp_path: Path) -> None:
    models["bare"] = nn.Sequential(nn.Flatten(), nn.AdaptiveAvgPool1d(CLASSES))
    with pytest.raises(ConfigurationError, match="'bare' cannot be cached"):
        GuardedPredictor.fit(models, bars(30, seed=3), predictor=KdePredictor(), cache=tmp_path)


def test_calibration_is_on_disk_when_fit_returns(models: dict[str, nn.Module], tmp_path: Path) -> None:
    GuardedPredictor.fit(models, bars(20, seed=3), predictor=KdePredictor(), cache=tmp_path)
    assert len(list(tmp_path.glob("*/*.parquet"))) == 3


def test_half_and_double_precision_are_taken_and_bytes_are_not(guard: GuardedPredictor) -> None:
    assert torch.equal(guard(TEST.images.double()).labels, guard(TEST.images).labels)
    with pytest.raises(DataFormatError, match=r"floating point images in \[0.0, 1.0\], got torch.uint8"):
        guard((TEST.images * 255).byte())
    with pytest.raises(DataFormatError, match=r"of shape \(1, 8, 8\) as in calibration, got \(3, 8, 8\)"):
        guard(TEST.images.repeat(1, 3, 1, 1))


def test_threads_get_the_answers_of_a_single_one(guard: GuardedPredictor) -> None:
    expected = guard(TEST.images)
    with ThreadPoolExecutor(4) as threads:
        for verdict in threads.map(guard, [TEST.images] * 8):
            assert torch.equal(verdict.failure_probability, expected.failure_probability)


def test_a_cache_gives_the_same_bits(models: dict[str, nn.Module], tmp_path: Path) -> None:
    calibration, predictor = bars(100, seed=3), KdePredictor()
    live = GuardedPredictor.fit(models, calibration, predictor=predictor)(TEST.images)
    for _ in range(2):
        cached = GuardedPredictor.fit(models, calibration, predictor=predictor, cache=tmp_path)(TEST.images)
        assert torch.equal(live.failure_probability, cached.failure_probability)


def test_other_bounds_and_class_names(models: dict[str, nn.Module]) -> None:
    calibration = bars(60, seed=3)
    shifted = (calibration.images * 2 - 1, calibration.labels)
    guard = GuardedPredictor.fit(models, shifted, bounds=Bounds(-1, 1), classes=["low", "middle", "high"])
    verdict = guard(TEST.images * 2 - 1)
    assert any(name in verdict.explain(0) for name in ("low", "middle", "high"))


def test_a_predictor_without_distances_costs_none(models: dict[str, nn.Module]) -> None:
    guard = GuardedPredictor.fit(models, bars(60, seed=3), predictor=PriorPredictor())
    assert guard.saved.distance is None
    best = max(range(3), key=guard.saved.card.calibration_accuracy.__getitem__)
    assert (guard(TEST.images).weights[:, best] == 1).all()


def test_bad_calibration_data_are_refused(models: dict[str, nn.Module]) -> None:
    good = bars(30, seed=3)
    for images, labels, message in (
        (good.images * 255, good.labels, r"outside \[0.0, 1.0\]; scale them or pass bounds"),
        (good.images, good.labels + 3, r"labels span 3\.\.5, but the versions answer for 3 classes"),
        (good.images * float("nan"), good.labels, "NaN"),
        (good.images[:0], good.labels[:0], "empty"),
        (good.images.double(), good.labels, "float32"),
        (good.images, good.labels[:5], "labels must be"),
        (good.images, torch.eye(3).long()[good.labels], "not one-hot"),
        (good.images.numpy(), good.labels.numpy(), r"use torch\.as_tensor"),
    ):
        with pytest.raises(DataFormatError, match=message):
            GuardedPredictor.fit(models, (images, labels))


def test_a_model_with_the_wrong_class_count_is_named(models: dict[str, nn.Module]) -> None:
    models["ten"] = TinyNet().build(10)
    with pytest.raises(WrongOutputError, match="'ten' answers for 10 classes, but 3 are expected"):
        GuardedPredictor.fit(models, bars(30, seed=3))
    with pytest.raises(WrongOutputError, match="'good' answers for 3 classes, but 4 are expected"):
        GuardedPredictor.fit(models, bars(30, seed=3), classes=["a", "b", "c", "d"])


def test_a_model_that_fails_in_calibration_is_named(models: dict[str, nn.Module]) -> None:
    models["breaks"].mode = "nan at bright images"  # type: ignore[assignment]
    with pytest.raises(WrongOutputError, match="'breaks' fails on calibration data: logits of"):
        GuardedPredictor.fit(models, bars(60, seed=3))
    models["breaks"].mode = "raises"  # type: ignore[assignment]
    with pytest.raises(WrongOutputError, match="'breaks' cannot take an input of shape"):
        GuardedPredictor.fit(models, bars(60, seed=3))


def test_a_list_of_models_is_named_after_their_classes() -> None:
    guard = GuardedPredictor.fit([template_model(0), TinyNet().build(CLASSES)], bars(40, seed=3))
    assert guard.saved.card.names == ("Affine-0", "Sequential-1")
    with pytest.raises(ConfigurationError, match=r"a list or a dict of models, got one Sequential; write \[model\]"):
        GuardedPredictor.fit(TinyNet().build(CLASSES), bars(40, seed=3))
    with pytest.raises(ConfigurationError, match="at least one version"):
        GuardedPredictor.fit([], bars(40, seed=3))


def test_images_without_channel_dimension_are_refused(guard: GuardedPredictor) -> None:
    with pytest.raises(DataFormatError, match="add the channel dimension"):
        guard(torch.zeros(5, 8, 8))


def test_one_image_without_batch_dimension_is_refused(guard: GuardedPredictor) -> None:
    with pytest.raises(DataFormatError, match="add the batch dimension"):
        guard(TEST.images[0])
