import gc
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from deepfailguard.boundary.cache import CachedDistance
from deepfailguard.boundary.deepfool import FoolboxDeepFool
from deepfailguard.errors import CacheMissError, ConfigurationError, DataFormatError
from deepfailguard.identity import describe, weights_fingerprint
from deepfailguard.seeding import generator
from deepfailguard.store import load_json
from deepfailguard.types import Distances


@dataclass
class Counting:
    """DeepFool that notes the size of every batch it is asked for."""

    inner: FoolboxDeepFool = field(default_factory=lambda: FoolboxDeepFool(candidates=3, batch_size=8))
    asked: list[int] = field(default_factory=list, init=False)

    batch_size = property(lambda self: self.inner.batch_size)
    bounds = property(lambda self: self.inner.bounds)

    def __call__(self, model: nn.Module, x: Tensor) -> Distances:
        self.asked.append(len(x))
        return self.inner(model, x)


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))


def images(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 1, 6, 6, generator=generator(seed, "cache test"))


def opened(model: nn.Module, folder: Path, **settings: object) -> CachedDistance:
    return CachedDistance(Counting(), folder, weights_fingerprint(model), **settings)


def same_bits(one: Distances, other: Distances) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("labels", "size", "found"))


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/shard-*.parquet"))


def test_live_and_cached_are_equal_bit_for_bit(model: nn.Module, tmp_path: Path) -> None:
    x = images(21)
    live = Counting().inner(model, x)
    with opened(model, tmp_path) as first:
        assert same_bits(first(model, x), live)
        assert same_bits(first(model, x), live)
    assert first.estimator.asked == [8, 8, 5]
    again = opened(model, tmp_path)
    assert same_bits(again.lookup(x), live)
    assert same_bits(again(model, x), live)
    assert again.estimator.asked == []


def test_a_chunk_with_one_missing_image_is_computed_whole_and_known_entries_win(
    model: nn.Module, tmp_path: Path
) -> None:
    x = images(16)
    with opened(model, tmp_path) as cached:
        single = cached(model, x[3:4])
        whole = cached(model, x)
    assert cached.estimator.asked == [1, 8, 8]
    assert same_bits(whole[3:4], single)


def test_lookup_counts_what_is_missing_and_never_computes(model: nn.Module, tmp_path: Path) -> None:
    x = images(10)
    with opened(model, tmp_path) as cached:
        cached(model, x[:8])
        with pytest.raises(CacheMissError, match=r"2 of 10 distances of version \w+ are not cached.*cache_distances"):
            cached.lookup(x)
        assert cached.missing(x) == 2
    assert cached.estimator.asked == [8]


def test_other_settings_other_weights_and_other_images_are_misses(model: nn.Module, tmp_path: Path) -> None:
    x = images(3)
    with opened(model, tmp_path) as cached:
        cached(model, x)
    other = CachedDistance(FoolboxDeepFool(candidates=4, batch_size=8), tmp_path, cached.fingerprint)
    assert other.missing(x) == 3
    assert opened(nn.Sequential(nn.Flatten(), nn.Linear(36, 5)), tmp_path).missing(x) == 3
    assert opened(model, tmp_path).missing(x + torch.finfo(torch.float32).eps) == 3
    assert opened(model, tmp_path).missing(x.double()) == 3
    assert opened(model, tmp_path).missing(x) == 0


def test_a_model_with_other_weights_is_refused(model: nn.Module, tmp_path: Path) -> None:
    cached = opened(model, tmp_path)
    cached(model, images(2))
    with torch.no_grad():
        model[0].bias[0] += 1
    with pytest.raises(ConfigurationError, match="the model's weights are"):
        cached(model, images(2))


def test_bad_images_are_numbered_in_the_whole_input(model: nn.Module, tmp_path: Path) -> None:
    x = images(20)
    x[17] = 2.0
    cached = opened(model, tmp_path)
    with pytest.raises(DataFormatError, match="the first is number 17"):
        cached(model, x)
    assert cached.estimator.asked == []


def test_single_images_are_gathered_into_few_shards(model: nn.Module, tmp_path: Path) -> None:
    with opened(model, tmp_path, flush_every=10) as cached:
        for image in images(25).split(1):
            cached(model, image)
        assert len(shards(tmp_path)) == 2
    assert len(shards(tmp_path)) == 3
    assert opened(model, tmp_path).missing(images(25)) == 0


def test_entries_survive_an_error_in_the_block(model: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="later"), opened(model, tmp_path) as cached:
        cached(model, images(3))
        raise RuntimeError("later")
    assert opened(model, tmp_path).missing(images(3)) == 0


def test_a_full_call_is_written_without_close(model: nn.Module, tmp_path: Path) -> None:
    opened(model, tmp_path)(model, images(64))
    assert opened(model, tmp_path).missing(images(64)) == 0


def test_entries_of_another_process_are_picked_up(model: nn.Module, tmp_path: Path) -> None:
    mine, other = opened(model, tmp_path), opened(model, tmp_path)
    assert mine.missing(images(8)) == 8
    with other:
        other(model, images(8))
    mine(model, images(8))
    assert mine.estimator.asked == []


def test_compacting_leaves_one_shard_with_everything(model: nn.Module, tmp_path: Path) -> None:
    with opened(model, tmp_path, flush_every=1) as cached:
        live = cached(model, images(24))
        assert len(shards(tmp_path)) == 3
        assert cached.compact() == 24
    assert len(shards(tmp_path)) == 1
    assert same_bits(opened(model, tmp_path).lookup(images(24)), live)


def test_the_manifest_tells_people_what_lies_there(model: nn.Module, tmp_path: Path) -> None:
    with opened(model, tmp_path) as cached:
        cached(model, images(1))
    (manifest,) = tmp_path.glob("*/manifest.json")
    assert load_json(manifest) == {"version": weights_fingerprint(model), "estimator": describe(cached.estimator)}
    assert manifest.parent.name.startswith(weights_fingerprint(model)[:16])


def test_nothing_is_written_for_nothing(model: nn.Module, tmp_path: Path) -> None:
    with opened(model, tmp_path) as cached:
        assert len(cached(model, images(0))) == 0
    assert list(tmp_path.iterdir()) == []


def test_equal_images_share_one_entry(model: nn.Module, tmp_path: Path) -> None:
    x = images(1).repeat(3, 1, 1, 1)
    with opened(model, tmp_path) as cached:
        got = cached(model, x)
        assert cached.compact() == 1
    assert len(got) == 3


def test_progress_is_shown_only_while_computing(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[str, bool]] = []

    def spy(items: range, total: int, label: str, quiet: bool) -> range:
        shown.append((label, quiet))
        return items

    monkeypatch.setattr("deepfailguard.boundary.cache.track", spy)
    for label in ("distances of a", "distances of a", None):
        with opened(model, tmp_path, progress=label) as cached:
            cached(model, images(2))
    assert shown == [("distances of a", False), ("distances of a", True), ("", True)]


def test_flushing_at_no_entry_is_refused(model: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="flush_every must be at least 1"):
        opened(model, tmp_path, flush_every=0)


@pytest.mark.parametrize("folder_is_gone", [False, True])
def test_entries_of_an_object_that_was_never_closed_are_rescued(
    model: nn.Module, tmp_path: Path, folder_is_gone: bool
) -> None:
    cached = opened(model, tmp_path)
    cached(model, images(3))
    assert shards(tmp_path) == []
    if folder_is_gone:
        shutil.rmtree(tmp_path)
    del cached
    gc.collect()
    assert tmp_path.exists() != folder_is_gone
    assert len(shards(tmp_path)) == (0 if folder_is_gone else 1)


@dataclass
class Plain:
    """An estimator that has nothing but the protocol's one method."""

    factor: float = 2.0

    def __call__(self, model: nn.Module, x: Tensor) -> Distances:
        return Distances(
            torch.zeros(len(x), dtype=torch.int64), x.flatten(1).amax(1) * self.factor, torch.ones(len(x)) > 0
        )


def test_any_estimator_can_be_cached(model: nn.Module, tmp_path: Path) -> None:
    x = images(300) * 50 - 7
    with CachedDistance(Plain(), tmp_path, weights_fingerprint(model)) as cached:
        assert same_bits(cached(model, x), Plain()(model, x))
        x[4, 0, 0, 0] = torch.nan
        with pytest.raises(DataFormatError, match="the first is number 4"):
            cached(model, x)
    assert CachedDistance(Plain(3.0), tmp_path, weights_fingerprint(model)).missing(images(2) * 50 - 7) == 2
