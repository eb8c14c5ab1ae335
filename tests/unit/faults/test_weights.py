import pytest
import torch
from torch import Tensor, nn

from deepfailguard.errors import ConfigurationError, EmptyReceiptError, FaultNotApplicableError
from deepfailguard.faults.weights import BitFlips, GaussianWeightNoise, PrunedWeights


def vector(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def popcount(before: Tensor, after: Tensor) -> int:
    """Bits in which two tensors of the same dtype differ."""
    integer = {2: torch.int16, 4: torch.int32}[before.dtype.itemsize]
    xor = before.view(integer) ^ after.view(integer)
    return sum(bin(value & (1 << before.dtype.itemsize * 8) - 1).count("1") for value in xor.tolist())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_as_many_bits_differ_as_were_asked_for(cnn: nn.Module, dtype: torch.dtype) -> None:
    model = cnn.to(dtype)
    changed, receipt = BitFlips(count=25).apply(model, seed=0)
    assert popcount(vector(model), vector(changed)) == 25
    assert vector(changed).dtype == dtype
    assert {change.where for change in receipt.changes} <= {name for name, _ in model.named_parameters()}


def test_a_rate_is_a_share_of_the_bits_of_the_field(cnn: nn.Module) -> None:
    changed, receipt = BitFlips(bits="sign", rate=0.1).apply(cnn, seed=0)
    before, after = vector(cnn), vector(changed)
    expected = round(0.1 * len(before))
    assert popcount(before, after) == expected
    assert torch.equal(before.abs(), after.abs())
    # A zero has a sign bit too, but its flip changes no value: it is not on the receipt.
    assert sum(change.count for change in receipt.changes) == int((before != after).sum()) <= expected


def test_all_bits_of_a_model_can_flip(cnn: nn.Module) -> None:
    changed, _ = BitFlips(rate=1.0).apply(cnn, seed=0)
    assert torch.equal(vector(changed).view(torch.int32), ~vector(cnn).view(torch.int32))


def test_mixed_precision_models_flip_each_tensor_by_its_own_layout(cnn: nn.Module) -> None:
    cnn[3].to(torch.bfloat16)
    changed, _ = BitFlips(bits="exponent", rate=1.0, layers="[36].weight").apply(cnn, seed=0)
    for index, mask in ((3, 0x7F80), (6, 0x7F800000)):
        old, new = cnn[index].weight, changed[index].weight
        integer = {2: torch.int16, 4: torch.int32}[old.dtype.itemsize]
        assert ((old.view(integer) ^ new.view(integer)) == mask).all()


def test_values_that_are_not_finite_are_left_for_the_guard_to_find(cnn: nn.Module) -> None:
    with torch.no_grad():
        cnn[3].weight.fill_(1.0)
    changed, receipt = BitFlips(bits="exponent", rate=1.0, layers="3.weight").apply(cnn, seed=0)
    # 1.0 has the exponent 01111111: all of its bits flipped give 10000000, which is 2.
    assert (changed[3].weight == 2.0).all()
    changed, receipt = BitFlips(bits="exponent", rate=0.125, layers="3.weight").apply(cnn, seed=0)
    assert changed[3].weight.isinf().any()
    assert sum(change.count for change in receipt.changes) == int((changed[3].weight != 1.0).sum())


def test_running_statistics_are_hit_only_when_asked(cnn: nn.Module) -> None:
    with pytest.raises(FaultNotApplicableError, match=r"layers='1\.running_var'"):
        BitFlips(count=4, layers="1.running_var").apply(cnn, seed=0)
    changed, _ = BitFlips(count=4, layers="1.running_var", buffers=True).apply(cnn, seed=0)
    assert popcount(cnn[1].running_var, changed[1].running_var) == 4
    assert torch.equal(vector(cnn), vector(changed))


def test_more_flips_than_bits_are_refused() -> None:
    with pytest.raises(FaultNotApplicableError, match=r"asked for 7 bits \(sign\), but there are only 6"):
        BitFlips(bits="sign", count=7).apply(nn.Linear(2, 2), seed=0)


def test_flips_that_change_no_value_are_an_empty_receipt() -> None:
    layer = nn.Linear(2, 2)
    nn.init.zeros_(layer.weight)
    with pytest.raises(EmptyReceiptError, match="'bit_flips'"):
        BitFlips(bits="sign", count=4, layers="weight").apply(layer, seed=0)


def test_noise_has_the_size_of_the_tensor_it_hits() -> None:
    model = nn.Sequential(nn.Linear(100, 100, bias=False), nn.Linear(100, 100, bias=False))
    with torch.no_grad():
        model[1].weight.mul_(50)
    changed, receipt = GaussianWeightNoise(sigma=0.2).apply(model, seed=0)
    for index in (0, 1):
        noise = (changed[index].weight - model[index].weight).detach()
        scale = model[index].weight.detach().square().mean().sqrt()
        # The deviation of 10,000 draws is known to 0.7 %.
        assert noise.std().item() == pytest.approx(0.2 * scale.item(), rel=0.04)
        assert abs(noise.mean().item()) < 0.05 * 0.2 * scale.item() * 5
    assert sum(change.count for change in receipt.changes) == int((vector(model) != vector(changed)).sum())


def test_noise_hits_as_many_weights_as_asked(cnn: nn.Module) -> None:
    changed, receipt = GaussianWeightNoise(count=9, layers="3.*").apply(cnn, seed=0)
    assert sum(change.count for change in receipt.changes) == 9
    assert int((vector(cnn) != vector(changed)).sum()) == 9


def test_noise_keeps_the_weights_format(cnn: nn.Module) -> None:
    changed, _ = GaussianWeightNoise().apply(cnn.to(torch.bfloat16), seed=0)
    assert vector(changed).dtype == torch.bfloat16


def test_pruning_by_magnitude_takes_the_smallest_of_all_layers() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.1, -5.0], [0.3, 4.0]]))
        model[1].weight.copy_(torch.tensor([[-0.2, 6.0], [7.0, -0.4]]))
    changed, receipt = PrunedWeights(rate=3 / 8).apply(model, seed=0)
    assert changed[0].weight.flatten().tolist() == pytest.approx([0, -5, 0, 4])
    assert changed[1].weight.flatten().tolist() == pytest.approx([0, 6, 7, -0.4])
    assert torch.equal(changed[0].bias, model[0].bias)
    assert [change.count for change in receipt.changes] == [2, 1]


def test_weights_that_were_zero_are_not_counted() -> None:
    layer = nn.Linear(4, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0, 0.0, 1.0, 2.0], [3.0, 4.0, 5.0, 6.0]]))
    _, receipt = PrunedWeights(count=3).apply(layer, seed=0)
    assert receipt.changes[0].count == 1
    with pytest.raises(EmptyReceiptError, match="'pruned_weights'"):
        PrunedWeights(count=2).apply(layer, seed=0)


def test_random_pruning_does_not_look_at_magnitudes(cnn: nn.Module) -> None:
    changed, receipt = PrunedWeights(order="random", rate=0.5, layers="6.weight").apply(cnn, seed=0)
    pruned = changed[6].weight == 0
    assert int(pruned.sum()) == receipt.changes[0].count == 480
    # Half of the pruned ones belong to the larger half: 240, with a deviation of 11.
    large = cnn[6].weight.abs() > cnn[6].weight.abs().median()
    assert abs(int((pruned & large).sum()) - 240) < 5 * 11


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BitFlips(bits="signs"), r"bit_flips\.bits must be one of any"),
        (lambda: BitFlips(rate=0), r"bit_flips\.rate must lie in"),
        (lambda: BitFlips(count=0), r"bit_flips\.count must be a whole number"),
        (lambda: GaussianWeightNoise(sigma=-1), r"gaussian_weight_noise\.sigma must be a finite number"),
        (lambda: PrunedWeights(order="largest"), r"pruned_weights\.order must be one of magnitude, random"),
    ],
)
def test_impossible_settings_are_refused(make, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()
