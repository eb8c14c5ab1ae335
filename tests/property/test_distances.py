"""Distances do not depend on order, company or chunk size, and scale as distances do."""

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from deepfailguard.boundary.base import DistanceEstimator
from deepfailguard.boundary.cache import CachedDistance
from deepfailguard.boundary.deepfool import FoolboxDeepFool
from deepfailguard.boundary.search.estimator import BoundarySearch
from deepfailguard.boundary.shards import Entry, ShardFolder, merge
from deepfailguard.identity import weights_fingerprint
from deepfailguard.seeding import generator
from deepfailguard.types import Distances

SEEDS = st.integers(0, 2**16)
quick = settings(max_examples=15, deadline=None, derandomize=True)


def smooth(seed: int) -> nn.Sequential:
    """A classifier without kinks, so that rounding stays rounding along the search."""
    draw = generator(seed, "smooth model")
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw))
    return model


def images(count: int, seed: int) -> Tensor:
    return torch.rand(count, 2, 2, 2, generator=generator(seed, "images"))


def assert_close(one: Distances, other: Distances) -> None:
    assert torch.equal(one.labels, other.labels)
    assert torch.equal(one.found, other.found)
    torch.testing.assert_close(one.size[one.found], other.size[other.found], rtol=1e-3, atol=1e-5)


def estimators(low: float, high: float, batch_size: int = 256) -> list[DistanceEstimator]:
    wide = {"low": low, "high": high, "batch_size": batch_size}
    searches = [BoundarySearch(effort, **wide) for effort in ("fast", "balanced", "tight")]
    return [FoolboxDeepFool(**wide), *searches, *(BoundarySearch("balanced", norm, **wide) for norm in ("linf", "l1"))]


KINDS = range(len(estimators(0.0, 1.0)))


@pytest.mark.parametrize("kind", KINDS)
@quick
@given(seed=SEEDS, chunk=st.integers(1, 12))
def test_chunk_size_changes_rounding_only(kind: int, seed: int, chunk: int) -> None:
    model, x = smooth(seed), images(9, seed)
    assert_close(estimators(-20.0, 20.0, chunk)[kind](model, x), estimators(-20.0, 20.0)[kind](model, x))


@pytest.mark.parametrize("kind", KINDS)
@quick
@given(seed=SEEDS, order=st.permutations(range(7)), count=st.integers(1, 7))
def test_order_and_company_change_rounding_only(kind: int, seed: int, order: list[int], count: int) -> None:
    model, x, index = smooth(seed), images(7, seed), torch.tensor(order)[:count]
    estimator = estimators(-20.0, 20.0)[kind]
    assert_close(estimator(model, x[index]), estimator(model, x)[index])


@pytest.mark.parametrize("kind", KINDS)
@quick
@given(seed=SEEDS, factor=st.sampled_from([0.125, 0.5, 4.0, 16.0]))
def test_scaled_inputs_have_scaled_distances(kind: int, seed: int, factor: float) -> None:
    # f(x / factor) at factor * x: the same geometry in other units, but for the 1e-4 that DeepFool adds per step.
    model, x = smooth(seed), images(6, seed)
    scaled = smooth(seed)
    with torch.no_grad():
        scaled[1].weight.div_(factor)
    one = estimators(-50.0, 50.0)[kind](model, x)
    other = estimators(-50.0 * factor, 50.0 * factor)[kind](scaled, x * factor)
    both = one.found & other.found
    assert torch.equal(one.labels, other.labels)
    assert both.float().mean() > 0.5
    loose = {"rtol": 0.02, "atol": 1e-2} if kind == 0 else {"rtol": 1e-3, "atol": 1e-6}
    torch.testing.assert_close(other.size[both] / factor, one.size[both], **loose)


@quick
@given(seed=SEEDS)
def test_more_steps_keep_what_was_found(seed: int) -> None:
    # The first crossing ends an image's search, however long the others' goes on.
    model, x = smooth(seed), images(6, seed)
    few, many = (FoolboxDeepFool(steps=steps, low=-20.0, high=20.0)(model, x) for steps in (3, 30))
    assert (many.found | ~few.found).all()
    torch.testing.assert_close(many.size[few.found], few.size[few.found], rtol=1e-3, atol=1e-5)


@quick
@given(seed=SEEDS, chunk=st.integers(1, 9), cut=st.integers(0, 9), flush=st.integers(1, 12))
def test_an_interrupted_cache_equals_the_live_run(seed: int, chunk: int, cut: int, flush: int) -> None:
    model, x = smooth(seed), images(9, seed)
    estimator = FoolboxDeepFool(batch_size=chunk, candidates=3)
    live = estimator(model, x)
    with tempfile.TemporaryDirectory() as folder:
        whole = cut // chunk * chunk  # what a run that was killed after some chunks has left
        for part in (x[:whole], x):
            with CachedDistance(estimator, Path(folder), weights_fingerprint(model), flush_every=flush) as cached:
                got = cached(model, part)
        again = CachedDistance(estimator, Path(folder), weights_fingerprint(model)).lookup(x)
    for name in ("labels", "size", "found"):
        assert torch.equal(getattr(got, name), getattr(live, name))
        assert torch.equal(getattr(again, name), getattr(live, name))


entries = st.dictionaries(
    st.binary(min_size=16, max_size=16),
    st.builds(Entry, st.integers(-1, 2**31 - 1), st.floats(0, 2.0**100, width=32), st.booleans()),
    min_size=1,
    max_size=12,
)


@quick
@given(parts=st.lists(entries, min_size=1, max_size=4))
def test_shards_keep_every_bit_through_writing_and_compacting(parts: list[dict[bytes, Entry]]) -> None:
    expected: dict[bytes, Entry] = {}
    for part in parts:
        merge(expected, part)
    with tempfile.TemporaryDirectory() as folder:
        for part in parts:
            ShardFolder(Path(folder), "owner").write(part)
        assert ShardFolder(Path(folder), "owner").read_new() == expected
        assert ShardFolder(Path(folder), "owner").compact() == len(expected)
        assert ShardFolder(Path(folder), "owner").read_new() == expected


@pytest.mark.parametrize("seed", range(3))
def test_the_strategies_do_find_boundaries(seed: int) -> None:
    assert FoolboxDeepFool(low=-20.0, high=20.0)(smooth(seed), images(9, seed)).found.float().mean() > 0.5
