"""A guard knows what its versions said to a few inputs, and refuses code that says something else."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from deepfailguard.errors import CorruptFileError, WrongOutputError
from deepfailguard.guard.asking import ask
from deepfailguard.guard.canary import Canary, check_canary, logits_told, mismatch, retaken_canary, take_canary
from deepfailguard.guard.guarded import GuardedPredictor
from deepfailguard.predictor.soft_vote import SoftVotePredictor
from deepfailguard.store import load_json
from deepfailguard.types import NO_ANSWER
from deepfailguard.versions.version import Version
from tests.examples import CLASSES, TinyNet, bars, template_model

CALIBRATION, SERVICE = bars(120, seed=3), bars(40, seed=4)


class Wrapped(nn.Module):
    """A version whose code may be changed while its weights stay."""

    def __init__(self, seed: int = 0, mode: str = "sound") -> None:
        super().__init__()
        self.inner = template_model(seed, 0.5)
        self.mode = mode
        self.asked = 0

    def forward(self, x: Tensor) -> Tensor:
        self.asked += 1
        if self.mode == "other preprocessing":
            x = (x - 0.5) / 0.25
        logits: Tensor = self.inner(x)
        if self.mode == "other order of classes":
            return logits.roll(1, 1)
        if self.mode == "other arithmetic":
            return logits * (1 + 1e-4)
        if self.mode == "raises":
            raise RuntimeError("no such operator")
        if self.mode == "nan":
            return logits * torch.nan
        if self.mode == "different each time":
            return logits + self.asked
        return logits[:, :2] if self.mode == "fewer classes" else logits


def _guard(mode: str = "sound") -> GuardedPredictor:
    models = {"ann": Wrapped(0), "bob": Wrapped(1, mode)}
    return GuardedPredictor.fit(models, CALIBRATION, predictor=SoftVotePredictor())


def _canary(guard: GuardedPredictor) -> Canary:
    assert guard.saved.canary is not None
    return guard.saved.canary


def _load(folder: Path, mode: str = "sound") -> GuardedPredictor:
    return GuardedPredictor.load(folder, {"ann": Wrapped(5), "bob": Wrapped(6, mode)})


def _version(model: nn.Module, classes: int = CLASSES) -> Version:
    return Version.of(model, "one", classes)


def test_it_is_what_the_versions_say_to_some_calibration_images() -> None:
    guard = _guard()
    canary = _canary(guard)
    assert canary.images.shape == (8, 1, 8, 8)
    assert canary.logits.shape == (8, 2, CLASSES)
    assert canary.images.dtype == canary.logits.dtype == torch.float32
    known = CALIBRATION.images.flatten(1)
    positions = [int((known == image).all(1).nonzero()[0]) for image in canary.images.flatten(1)]
    assert torch.equal(CALIBRATION.labels[positions].bincount(), torch.tensor([3, 3, 2]))
    for column, version in enumerate(guard.versions):
        torch.testing.assert_close(canary.logits[:, column], version.logits(canary.images))
    again = _canary(_guard())
    assert torch.equal(again.images, canary.images)
    assert torch.equal(again.logits, canary.logits)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (torch.tensor([1, 1, 1]), [0, 1, 2]),
        (torch.tensor([2, 2, 2, 0, 2, 1]), [3, 5, 0, 1, 2, 4]),
        (torch.arange(1000), [0, 143, 285, 428, 571, 714, 856, 999]),
        (torch.arange(9).flip(0), [8, 7, 6, 5, 3, 2, 1, 0]),
    ],
)
def test_the_images_are_spread_over_the_classes(labels: Tensor, expected: list[int]) -> None:
    images = torch.arange(len(labels), dtype=torch.float32).reshape(-1, 1, 1, 1) / 1000
    canary = take_canary([_version(nn.Flatten(), 1)], images, labels)
    assert (canary.images.flatten() * 1000).round().int().tolist() == expected


def test_it_is_saved_and_loaded_and_follows_the_versions(tmp_path: Path) -> None:
    guard = _guard()
    guard.save(tmp_path)
    again = _canary(_load(tmp_path))
    assert torch.equal(again.images, _canary(guard).images)
    assert torch.equal(again.logits, _canary(guard).logits)
    bob = guard.without(["ann"])
    assert torch.equal(_canary(bob).logits, _canary(guard).logits[:, [1]])
    bob.save(tmp_path)
    loaded = GuardedPredictor.load(tmp_path, [Wrapped(6)])
    assert torch.equal(_canary(loaded).logits, _canary(guard).logits[:, [1]])


@pytest.mark.parametrize(
    ("mode", "told"),
    [
        ("other preprocessing", "the logits of 8 of 8 inputs.*off by up to"),
        ("other order of classes", "the logits of 8 of 8 inputs, 8 of them with another label, off by up to"),
        ("fewer classes", r"no finite logits for 8 of 8 inputs \(WrongOutputError: .*shape \(8, 2\)"),
        ("raises", r"no finite logits for 8 of 8 inputs \(RuntimeError: no such operator\)"),
        ("nan", r"no finite logits for 8 of 8 inputs \(logits of 8 of 8 inputs are NaN"),
    ],
)
def test_a_version_whose_code_changed_is_refused_by_name(mode: str, told: str, tmp_path: Path) -> None:
    _guard().save(tmp_path)
    message = f"version 'bob' answers the guard's canary inputs otherwise than when it was fitted: {told}"
    with pytest.raises(
        WrongOutputError, match=message + ".*its code changed .architecture, preprocessing, class order"
    ):
        _load(tmp_path, mode)


def test_another_architecture_with_the_same_weights_is_refused(tmp_path: Path) -> None:
    class Swish(nn.Module):
        def __init__(self, activation: type[nn.Module]) -> None:
            super().__init__()
            self.layers = TinyNet().build(CLASSES)
            self.after = activation

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.after()(self.layers(x))
            return logits

    GuardedPredictor.fit([Swish(nn.Identity)], CALIBRATION, predictor=SoftVotePredictor()).save(tmp_path)
    GuardedPredictor.load(tmp_path, [Swish(nn.Identity)])
    with pytest.raises(WrongOutputError, match="'Swish-0' answers the guard's canary inputs otherwise"):
        GuardedPredictor.load(tmp_path, [Swish(nn.ReLU)])


def test_rounding_of_another_device_is_allowed(tmp_path: Path) -> None:
    _guard().save(tmp_path)
    _load(tmp_path, "other arithmetic")


def test_a_version_that_failed_when_it_was_recorded_is_expected_nothing(tmp_path: Path) -> None:
    guard = _guard()
    with torch.no_grad():
        guard.models[1].inner.weight.fill_(torch.nan)  # type: ignore[union-attr, operator]
    guard.update(SERVICE.images, SERVICE.labels)
    assert _canary(guard).logits[:, 1].isnan().all()
    guard.save(tmp_path)
    _load(tmp_path)


def test_a_version_that_answers_otherwise_each_time_is_expected_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    guard = _guard("different each time")
    assert "version 'bob' answers the same inputs otherwise each time" in caplog.text
    canary = _canary(guard)
    assert canary.logits[:, 1].isnan().all()
    assert canary.logits[:, 0].isfinite().all()
    guard.save(tmp_path)
    _load(tmp_path, "different each time")


def test_an_update_takes_it_anew_where_weights_changed(tmp_path: Path) -> None:
    guard = _guard()
    before = _canary(guard)
    guard.update(SERVICE.images, SERVICE.labels)
    assert torch.equal(_canary(guard).logits, before.logits)
    with torch.no_grad():
        guard.models[1].inner.weight.mul_(-1)  # type: ignore[union-attr, operator]
    guard.update(SERVICE.images[:3], SERVICE.labels[:3])  # too few: the guard is still one of the weights before
    assert torch.equal(_canary(guard).logits, before.logits)
    guard.update(SERVICE.images, SERVICE.labels)
    after = _canary(guard)
    assert torch.equal(after.images, before.images)
    assert torch.equal(after.logits[:, 0], before.logits[:, 0])
    torch.testing.assert_close(after.logits[:, 1], -before.logits[:, 1])
    guard.save(tmp_path)
    _load(tmp_path)


def test_it_is_verified_like_the_other_parts(tmp_path: Path) -> None:
    _guard().save(tmp_path / "one")
    models = {"ann": Wrapped(2), "bob": Wrapped(3)}
    GuardedPredictor.fit(models, CALIBRATION, predictor=SoftVotePredictor()).save(tmp_path / "two")
    (tmp_path / "one" / "manifest.json").unlink()
    path = tmp_path / "one" / "canary.safetensors"
    path.write_bytes((tmp_path / "two" / "canary.safetensors").read_bytes())
    with pytest.raises(CorruptFileError, match=r"canary\.safetensors belongs to another guard"):
        _load(tmp_path / "one")
    path.unlink()
    with pytest.raises(CorruptFileError, match=r"lost a part: no file .*canary\.safetensors"):
        _load(tmp_path / "one")


def test_a_guard_without_is_saved_updated_and_taken_apart_without(tmp_path: Path) -> None:
    guard = _guard()
    guard.saved = replace(guard.saved, canary=None)
    with torch.no_grad():
        guard.models[1].inner.weight.mul_(-1)  # type: ignore[union-attr, operator]
    guard.update(SERVICE.images, SERVICE.labels)
    assert guard.without(["ann"]).saved.canary is None
    _guard().save(tmp_path)  # one with a canary, which must not be left behind
    guard.save(tmp_path)
    assert not (tmp_path / "canary.safetensors").exists()
    assert load_json(tmp_path / "guard.json")["canary"] is None
    assert _load(tmp_path, "nan").saved.canary is None
    check_canary(None, guard.versions)
    assert retaken_canary(None, guard.versions, [0]) is None


def test_answers_that_are_missing_are_no_zeros() -> None:
    class AtDark(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x.amax((1, 2, 3))[:, None] < 0.5, torch.nan, x.flatten(1)[:, :2])

    images = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1).expand(2, 1, 1, 2)
    answers = ask(_version(AtDark(), 2), None, images)
    assert answers.distances.labels.tolist() == [NO_ANSWER, 0]
    told = logits_told(answers)
    assert told.isnan().tolist() == [[True, True], [False, False]]
    assert mismatch(torch.zeros(2, 2), torch.zeros(2, 2)) == ""
    assert mismatch(torch.zeros(2, 2), told * 0) == "no finite logits for 1 of 2 inputs"


EXPECTED = torch.tensor([[4.0, -10.0, 3.99], [0.5, 0.1, 0.0]])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]], ""),
        ([[0.09, -0.09, 0.0], [0.09, 0.0, 0.0]], ""),  # below a hundredth of the largest logit, 10
        ([[-0.05, 0.0, 0.04], [0.0, 0.0, 0.0]], ""),  # the label flips where the best two are all but equal
        ([[0.11, 0.0, 0.0], [0.0, 0.0, 0.0]], "the logits of 1 of 2 inputs, off by up to 1.1% of the largest"),
        (
            [[0.0, 0.0, 0.0], [0.0, 0.5, 0.0]],
            "the logits of 1 of 2 inputs, 1 of them with another label, off by up to 5.0% of the largest",
        ),
        ([[torch.nan, 0.0, 0.0], [0.0, 0.0, 0.0]], "no finite logits for 1 of 2 inputs"),
        ([[torch.inf, 0.0, 0.0], [0.0, -torch.inf, 0.0]], "no finite logits for 2 of 2 inputs"),
    ],
)
def test_what_differs_is_told(change: list[list[float]], told: str) -> None:
    assert mismatch(EXPECTED, EXPECTED.double() + torch.tensor(change)) == told


def test_shapes_must_fit_and_inputs_without_expectation_do_not_count() -> None:
    assert mismatch(EXPECTED, EXPECTED[:, :2]) == "logits of shape (2, 2) where (2, 3) are expected"
    assert mismatch(EXPECTED, EXPECTED[:1]) == "logits of shape (1, 3) where (2, 3) are expected"
    partly = torch.stack([EXPECTED[0], torch.full((3,), torch.nan)])
    assert mismatch(partly, EXPECTED + torch.tensor([[0.0], [9.0]])) == ""
    assert mismatch(partly, torch.full((2, 3), torch.nan)) == "no finite logits for 1 of 2 inputs"
    assert mismatch(partly * torch.nan, EXPECTED) == ""
    assert mismatch(torch.zeros(2, 3), torch.full((2, 3), 1e-7)) != ""


def test_the_images_are_asked_with_the_lock_of_the_guard_held(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = _guard()
    held: list[bool] = []

    def watching(version: Version, images: Tensor) -> Tensor:
        held.append(guard._one_at_a_time.locked())
        return torch.zeros(len(images), CLASSES)

    monkeypatch.setattr("deepfailguard.guard.canary.recorded", watching)
    with torch.no_grad():
        guard.models[0].inner.weight.add_(0.1)  # type: ignore[union-attr, operator]
    guard.update(SERVICE.images, SERVICE.labels)
    assert held == [True]


def test_nothing_of_it_is_logged_where_all_is_well(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    _guard().save(tmp_path)
    _load(tmp_path)
    assert not caplog.messages
