"""Evidence keeps all its fields together."""

from dataclasses import fields, replace

import torch
from torch import Tensor

from deepfailguard.seeding import generator
from deepfailguard.types import Evidence


def _evidence(inputs: int) -> Evidence:
    random = generator(0, "evidence", inputs)
    labels = torch.randint(3, (inputs, 3), generator=random)
    features = tuple(torch.rand(inputs, width, generator=random) for width in (2, 4, 6))
    distance, stability = torch.rand(2, inputs, 3, generator=random).unbind(0)
    return Evidence(labels, distance, distance > 0.5, torch.rand(inputs, 3, 5, generator=random), features, stability)


def _tensors(evidence: Evidence) -> list[Tensor]:
    values = [getattr(evidence, field.name) for field in fields(evidence)]
    return [each for value in values for each in (value if isinstance(value, tuple) else [value])]


def _same(one: Evidence, other: Evidence) -> bool:
    return all(map(torch.equal, _tensors(one), _tensors(other)))


def test_parts_put_together_are_the_whole() -> None:
    whole = _evidence(7)
    assert _same(Evidence.concatenate([whole[:3], whole[3:3], whole[3:]]), whole)
    assert _same(whole.of_versions([0, 1, 2]), whole)
    assert _same(whole.cpu(), whole)


def test_each_field_follows_inputs_and_versions() -> None:
    whole = _evidence(7)
    rows = torch.tensor([5, 1])
    for got, field in zip(_tensors(whole[rows]), _tensors(whole), strict=True):
        assert torch.equal(got, field[rows])
    some = whole.of_versions([2, 0])
    assert some.stability is not None
    assert whole.stability is not None
    assert torch.equal(some.stability, whole.stability[:, [2, 0]])
    assert [each.shape[1] for each in some.features or ()] == [6, 2]


def test_what_only_some_parts_hold_the_whole_does_not() -> None:
    one, other = _evidence(2), replace(_evidence(3), stability=None)
    joined = Evidence.concatenate([one, other])
    assert joined.stability is None
    assert joined.logits is not None
    assert other[1:].stability is None
    assert other.of_versions([1]).stability is None
    assert other.cpu().stability is None
