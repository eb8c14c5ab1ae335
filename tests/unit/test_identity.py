import functools

import pytest
import torch
from torch import nn

from deepfailguard.decision.rules import highest_posterior
from deepfailguard.errors import ConfigurationError
from deepfailguard.identity import describe, digest, digest_tensors, rebuild, weights_fingerprint
from deepfailguard.types import Bounds
from deepfailguard.versions.spec import Recipe


@pytest.mark.parametrize("value", [Bounds(-1.0, 2.0), Recipe(epochs=3), [1, None, "x"], {"a": [True, 0.5]}])
def test_descriptions_rebuild(value: object) -> None:
    assert rebuild(describe(value), ["deepfailguard"]) == value


def test_partial_functions_rebuild() -> None:
    rule = functools.partial(highest_posterior, abstain_above=0.5)
    again = rebuild(describe(rule), ["deepfailguard"])
    assert again.func is highest_posterior
    assert again.keywords == {"abstain_above": 0.5}


@pytest.mark.parametrize(
    "target", ["os.system", "builtins.eval", "torch.load", "deepfailguard.store.os.system", "deepfailguard.store.Path"]
)
def test_only_trusted_code_is_called(target: str) -> None:
    with pytest.raises(ConfigurationError, match=r"refusing|cannot find"):
        rebuild({"_target_": target}, ["deepfailguard"])


def test_a_class_that_hides_its_settings_is_refused() -> None:
    class Forgetful:
        def __init__(self, width: int) -> None:
            pass

    with pytest.raises(ConfigurationError, match=r"self\.width = width"):
        describe(Forgetful(3))


def test_digest_ignores_order_but_not_values() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


def test_fingerprint_sees_every_bit_and_buffer() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    before = weights_fingerprint(model)
    model[1].num_batches_tracked += 1  # type: ignore[operator]
    assert weights_fingerprint(model) != before


def test_fingerprint_sees_exchanged_modules_and_unsaved_buffers() -> None:
    relu, gelu, other = (nn.Sequential(nn.Linear(2, 2), kind()) for kind in (nn.ReLU, nn.GELU, nn.ReLU))
    for model in (gelu, other):
        model.load_state_dict(relu.state_dict())
    assert weights_fingerprint(relu) == weights_fingerprint(other) != weights_fingerprint(gelu)
    other.register_buffer("mean", torch.ones(1), persistent=False)
    assert weights_fingerprint(relu) != weights_fingerprint(other)


@pytest.mark.parametrize(
    "value",
    [lambda labels, p: None, nn.Linear(2, 2), nn.Linear, torch.float16, [].append, {1, 2}, object],
    ids=["lambda", "module", "class", "dtype", "bound method", "set", "object"],
)
def test_what_could_not_be_rebuilt_is_refused(value: object) -> None:
    with pytest.raises(ConfigurationError, match="cannot be described"):
        describe(value)


def test_open_ended_settings_are_refused() -> None:
    class Open:
        def __init__(self, **settings: int) -> None:
            self.settings = settings

    with pytest.raises(ConfigurationError, match=r"takes \*args or \*\*kwargs"):
        describe(Open(width=3))


def test_tensor_digest_sees_dtype_shape_and_name() -> None:
    zeros = torch.zeros(4)
    digests = [digest_tensors(t) for t in ({"a": zeros}, {"b": zeros}, {"a": zeros.view(2, 2)}, {"a": zeros.int()})]
    assert len(set(digests)) == 4
    assert digest_tensors({"a": torch.ones(6).view(2, 3).T}) == digest_tensors({"a": torch.ones(3, 2)})
