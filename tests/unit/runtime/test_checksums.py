"""No flipped bit and no exchanged tensor stays unseen for longer than a round."""

import copy
import math
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from deepfailguard.errors import ConfigurationError
from deepfailguard.runtime.checksums import WeightRotation
from deepfailguard.seeding import generator
from tests.examples import TinyNet

CHUNK = 64
DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)


class Odd(nn.Module):
    """Tensors of every kind that a model may have."""

    def __init__(self) -> None:
        super().__init__()
        random = generator(0, "odd")
        for dtype in DTYPES:
            values = torch.randint(0, 2, (5, 7), generator=random).to(dtype)
            self.register_buffer(str(dtype).replace(".", "_"), values)
        self.register_buffer("unsaved", torch.randn(40, generator=random), persistent=False)
        self.register_buffer("scalar", torch.tensor(0.25))
        self.register_buffer("empty", torch.zeros(0, 3))
        self.register_buffer("none", None)
        self.register_buffer("transposed", torch.randn(9, 11, generator=random).T)
        self.register_buffer("strided", torch.randn(6, 10, generator=random)[:, ::3])
        self.register_buffer("one_row", torch.randn(100, 3, generator=random).T[:1])
        convolution = nn.Conv2d(3, 4, 3)
        self.channels_last = convolution.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.inner = nn.Linear(13, 5)
        self.tied = nn.Linear(13, 5)
        self.tied.weight = self.inner.weight


def _names(model: nn.Module) -> list[str]:
    parameters = model.named_parameters(remove_duplicate=False)
    return [name for name, _ in (*parameters, *model.named_buffers(remove_duplicate=False))]


def _tensor(model: nn.Module, name: str) -> Tensor:
    return dict(model.named_parameters(remove_duplicate=False)).get(name, dict(model.named_buffers()).get(name))  # type: ignore[return-value]


def _flip(tensor: Tensor, bit: int) -> None:
    """Flip one bit of a tensor in place, counted in the order of its elements, however they lie in memory."""
    bits = 8 * tensor.element_size()
    element, within = divmod(bit % (tensor.numel() * bits), bits)
    place = torch.unravel_index(torch.tensor(element), tensor.shape)
    with torch.no_grad():
        raw = tensor.detach()[place].reshape(1).clone()
        raw.view(torch.uint8)[within // 8] ^= 1 << (within % 8)
        tensor.detach()[place] = raw[0]
        assert torch.equal(tensor.detach()[place].reshape(1).view(torch.uint8), raw.view(torch.uint8))


def _round(rotation: WeightRotation) -> tuple[str, ...]:
    return rotation.check(math.inf)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_flipped_bit_is_found_within_a_round_of_chunks(data: st.DataObject) -> None:
    model = Odd()
    name = data.draw(st.sampled_from([n for n in _names(model) if n not in ("empty", "torch_bool")]))
    bit = data.draw(st.integers(0, 10**6))
    before = data.draw(st.integers(0, 100))
    rotation = WeightRotation(model, CHUNK)
    for _ in range(before):
        assert rotation.check(0.0) == ()
    _flip(_tensor(model, name), bit)
    shared = {"inner.weight", "tied.weight"}
    expected = shared if name in shared else {name}
    assert set(_round(rotation)) == expected
    _flip(_tensor(model, name), bit)
    assert set(_round(rotation)) == expected  # it was changed, though it is as before again


@pytest.mark.parametrize("name", ["torch_bfloat16", "scalar", "one_row", "inner.bias"])
def test_every_single_bit_counts(name: str) -> None:
    model = Odd()
    tensor = _tensor(model, name)
    for bit in range(8 * tensor.numel() * tensor.element_size()):
        rotation = WeightRotation(model, CHUNK)
        _flip(tensor, bit)
        assert _round(rotation) == (name,)
        _flip(tensor, bit)


def test_truth_values_count() -> None:
    model = Odd()
    rotation = WeightRotation(model, CHUNK)
    _tensor(model, "torch_bool")[4, 6] ^= True
    assert _round(rotation) == ("torch_bool",)


def test_sound_models_stay_sound_and_are_not_touched() -> None:
    model = Odd()
    before = {name: _tensor(model, name).detach().clone() for name in _names(model)}
    rotation = WeightRotation(model, CHUNK)
    for count in range(1, 4):
        assert _round(rotation) == ()
        assert rotation.rounds == count
    assert all(torch.equal(_tensor(model, name), tensor) for name, tensor in before.items())
    assert rotation.bytes == sum(t.numel() * t.element_size() for t in before.values())


def test_one_call_without_time_compares_one_chunk_and_goes_on_in_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    crc32 = zlib.crc32

    def counting(chunk: memoryview) -> int:
        sizes.append(len(chunk))
        return crc32(chunk)

    monkeypatch.setattr("deepfailguard.runtime.checksums.zlib.crc32", counting)
    model = nn.Sequential(nn.Linear(10, 9, bias=False), nn.Linear(4, 1))  # 360, 16 and 4 bytes
    rotation = WeightRotation(model, CHUNK)
    whole = [64] * 5 + [40, 16, 4]
    assert sizes == whole
    for _ in range(2):
        sizes.clear()
        for count in range(1, len(whole) + 1):
            rotation.check(0.0)
            assert sizes == whole[:count]
    assert rotation.rounds == 2
    sizes.clear()
    rotation.check(0.0)
    rotation.check(math.inf)  # one round at most, across the end
    assert sizes == whole + whole[:1]
    assert rotation.rounds == 3


def test_time_is_spent_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        now = 0.0

        def perf_counter(self) -> float:
            self.now += 1.0  # each look at it takes a second
            return self.now

    monkeypatch.setattr("deepfailguard.runtime.checksums.time", Clock())
    rotation = WeightRotation(nn.Linear(160, 1, bias=False), CHUNK)  # ten chunks
    rotation.check(4.0)
    assert rotation.rounds == 0
    rotation.check(4.0)
    assert rotation.rounds == 0
    rotation.check(4.0)
    assert rotation.rounds == 1


def test_exchanged_lost_new_and_reshaped_tensors_are_changes() -> None:
    def told(change: str) -> set[str]:
        model = TinyNet().build(3)
        rotation = WeightRotation(model, CHUNK)
        convolution, head = model[0], model[-1]
        if change == "exchanged parameter":
            head.weight = nn.Parameter(head.weight.detach() + 1)
        elif change == "same parameter again":
            head.weight = nn.Parameter(head.weight.detach().clone())
        elif change == "lost parameter":
            head.bias = None
        elif change == "lost module":
            del model[1]
        elif change == "new buffer":
            head.register_buffer("extra", torch.zeros(1))
        elif change == "other shape":
            head.weight.data = head.weight.data.reshape(-1, 3)
        elif change == "other dtype":
            convolution.half()
        elif change == "exchanged module":
            model[-1] = copy.deepcopy(head)
            with torch.no_grad():
                model[-1].bias[0] += 1
        return set(_round(rotation))

    head, convolution = {"6.weight", "6.bias"}, {"0.weight", "0.bias"}
    assert told("nothing") == set()
    assert told("exchanged parameter") == {"6.weight"}
    assert told("same parameter again") == set()
    assert told("lost parameter") == {"6.bias"}
    assert head <= told("lost module")
    assert told("new buffer") == {"6.extra"}
    assert told("other shape") == {"6.weight"}
    assert told("other dtype") == convolution
    assert told("exchanged module") == {"6.bias"}


def test_an_empty_tensor_that_is_no_longer_empty_is_a_change() -> None:
    model = Odd()
    rotation = WeightRotation(model, CHUNK)
    model.empty = torch.zeros(2, 3)
    assert _round(rotation) == ("empty",)


def test_a_change_in_the_middle_of_a_round_is_found_by_the_end_of_the_next() -> None:
    model = TinyNet().build(3)
    rotation = WeightRotation(model, CHUNK)
    rotation.check(0.0)
    model[0] = nn.Conv2d(1, 8, 3, padding=1)
    found = set(_round(rotation)) | set(_round(rotation))
    assert found == {"0.weight", "0.bias"}


def test_what_vanishes_or_is_reshaped_ahead_in_a_round_is_found_in_it() -> None:
    model = TinyNet().build(3)
    rotation = WeightRotation(model, CHUNK)
    rotation.check(0.0)
    model[-1].weight.data = model[-1].weight.data.reshape(-1, 3)
    model[-1].bias = None
    while rotation.rounds == 0:
        found = rotation.check(0.0)
    assert set(found) == {"6.weight", "6.bias"}


def test_layout_in_memory_and_device_do_not_matter() -> None:
    model = nn.Sequential(nn.Conv2d(5, 7, 3), nn.BatchNorm2d(7))
    rotation = WeightRotation(model, CHUNK)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert not model[0].weight.is_contiguous()
    assert _round(rotation) == ()
    if torch.cuda.is_available():
        assert _round(WeightRotation(model.cuda(), CHUNK)) == ()
        model.cuda()
        assert _round(rotation) == ()
        _flip(model[0].weight, 1000)
        assert _round(rotation) == ("0.weight",)


def test_a_model_without_tensors_is_sound_until_it_has_one() -> None:
    model = nn.Sequential(nn.Flatten())
    rotation = WeightRotation(model)
    assert _round(rotation) == ()
    assert (rotation.bytes, rotation.rounds) == (0, 1)
    model.register_buffer("late", torch.ones(1))
    assert _round(rotation) == ("late",)


def test_a_traced_model_is_watched(tmp_path: Path) -> None:
    with torch.no_grad():
        traced = torch.jit.trace(TinyNet().build(3).eval(), torch.zeros(2, 1, 8, 8))
    torch.jit.save(traced, tmp_path / "traced.pt")
    model = torch.jit.load(tmp_path / "traced.pt")
    rotation = WeightRotation(model, CHUNK)
    assert _round(rotation) == ()
    names = dict(model.named_parameters())
    name = next(name for name in names if name.endswith("weight"))
    _flip(names[name], 77)
    assert _round(rotation) == (name,)


def test_chunks_hold_at_least_one_element() -> None:
    with pytest.raises(ConfigurationError, match="chunk_bytes must be at least 16, got 8"):
        WeightRotation(nn.Linear(1, 1), chunk_bytes=8)
    wide = nn.Module()
    wide.register_buffer("widest", torch.ones(3, dtype=torch.complex128))
    rotation = WeightRotation(wide, chunk_bytes=16)
    _flip(wide.widest, 300)  # type: ignore[arg-type]
    assert _round(rotation) == ("widest",)
