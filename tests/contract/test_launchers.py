"""Every launcher leaves the distances that a plain loop in one process leaves, bit for bit."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from deepfailguard.boundary.base import DistanceEstimator
from deepfailguard.boundary.cache import CachedDistance
from deepfailguard.pipeline.evidence import cache_distances
from deepfailguard.pipeline.launching.base import Launcher, Outcome
from deepfailguard.pipeline.launching.inline import Inline
from deepfailguard.pipeline.launching.processes import Processes
from deepfailguard.pipeline.launching.ray_data import RayData
from deepfailguard.pipeline.launching.work import Work
from deepfailguard.types import Distances
from deepfailguard.versions.pool import Pool
from tests.launching_examples import CHUNK, CPU, DISTANCE, ByPlace, filled_pool, images, same_bits

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning")  # Ray's own

LAUNCHERS = [Inline(), Processes(workers=2), RayData(workers=2)]


class Backwards:
    """One process that takes the units of a wave in the opposite order: the order must not matter."""

    def run(self, work: Work) -> Iterator[Outcome]:
        units = sorted(work.units, key=lambda unit: (unit.job, unit.wave, -unit.start))
        return Inline().run(Work(work.jobs, tuple(units), work.images, work.site))


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return filled_pool(tmp_path_factory.mktemp("pool"))


def plain_loop(
    pool: Pool, parts: Mapping[str, Tensor], estimator: DistanceEstimator, cache: Path
) -> dict[str, Distances]:
    results = {}
    for card in pool.cards():
        model = pool.load(card, CPU).model
        for part, x in parts.items():
            with CachedDistance(estimator, cache, card.fingerprint) as cached:
                results[f"{card.name}/{part}"] = cached(model, x)
    return results


@pytest.mark.parametrize("launcher", [*LAUNCHERS, Backwards()], ids=lambda launcher: type(launcher).__name__)
@pytest.mark.parametrize("estimator", [DISTANCE, ByPlace()], ids=lambda estimator: type(estimator).__name__)
def test_all_launchers_give_the_same_bits(
    pool: Pool, tmp_path: Path, launcher: Launcher, estimator: DistanceEstimator
) -> None:
    parts, versions = images(), pool.cards()
    if isinstance(launcher, RayData):  # a pool of actors per version and wave takes seconds to start
        versions = versions[:2] if estimator is DISTANCE else versions[:1]
        parts = {"test": parts["test"][: CHUNK + 1] if estimator is DISTANCE else parts["test"]}
    expected = plain_loop(pool, parts, estimator, tmp_path / "plain")
    expected = {key: value for key, value in expected.items() if key.split("/")[0] in {c.name for c in versions}}
    got = cache_distances(versions, parts, estimator, tmp_path / "cache", pool, CPU, launcher)
    assert same_bits(got, expected)
    assert not any(torch.equal(d.size, torch.zeros_like(d.size)) for d in got.values())


@pytest.mark.parametrize("launcher", LAUNCHERS, ids=lambda launcher: type(launcher).__name__)
def test_what_is_cached_is_not_computed_again(pool: Pool, tmp_path: Path, launcher: Launcher) -> None:
    expected = plain_loop(pool, images(), DISTANCE, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    assert same_bits(cache_distances(pool.cards(), images(), DISTANCE, tmp_path, pool, CPU, launcher), expected)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")} == before
