import multiprocessing
import os
import pickle
import platform
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from deepfailguard.boundary.cache import CachedDistance
from deepfailguard.errors import ConfigurationError, DataFormatError, StoreError
from deepfailguard.pipeline.launching import processes, ray_data
from deepfailguard.pipeline.launching.crew import Crew
from deepfailguard.pipeline.launching.image_files import ImageFile, image_files
from deepfailguard.pipeline.launching.planning import locate, plan, waves
from deepfailguard.pipeline.launching.processes import Processes, cores, device_of_worker, threads_of_worker
from deepfailguard.pipeline.launching.ray_actor import Block, site_of_actor
from deepfailguard.pipeline.launching.ray_data import RayData
from deepfailguard.pipeline.launching.schedule import Schedule
from deepfailguard.pipeline.launching.serving_process import Briefing
from deepfailguard.pipeline.launching.terminating import exit_on_sigterm
from deepfailguard.pipeline.launching.work import Job, Unit, Work
from tests.launching_examples import CHUNK, CPU, DISTANCE, filled_pool, images


def planned(tmp_path: Path, parts: dict[str, Tensor], versions: int = 1) -> Work:
    pool = filled_pool(tmp_path / "pool")
    jobs = [Job(card, DISTANCE) for card in pool.cards()[:versions]]
    return plan(jobs, parts, locate(pool, tmp_path / "cache", CPU))


def test_a_wave_holds_no_image_twice_and_waits_for_those_that_it_shares() -> None:
    contents = [[b"a", b"b"], [b"c", b"c"], [b"b", b"d"], [b"a"], [b"d", b"c"], [b"e"]]
    assert waves(contents) == [0, 0, 1, 1, 2, 0]
    assert waves([]) == []


def test_a_plan_covers_every_image_once_in_whole_chunks(tmp_path: Path) -> None:
    parts = {"calibration": torch.rand(3 * 64 * CHUNK + 5, 1, 8, 8), "test": torch.rand(7, 1, 8, 8)}
    work = planned(tmp_path, parts, versions=2)
    for job in (0, 1):
        for part, x in parts.items():
            units = sorted((u for u in work.units if (u.job, u.part) == (job, part)), key=lambda u: u.start)
            assert [u.start for u in units] == [0, *(u.stop for u in units[:-1])]
            assert units[-1].stop == len(x)
            assert all(u.start % CHUNK == 0 for u in units)
    assert work.chunks == 2 * (3 * 64 + 1 + 1)
    assert max(unit.chunks for unit in work.units) == 3


def test_a_plan_leaves_out_what_is_cached(tmp_path: Path) -> None:
    parts = images()
    work = planned(tmp_path, parts)
    job = work.jobs[0]
    model = work.site.pool.load(job.card, CPU).model
    with CachedDistance(job.estimator, work.site.cache, job.card.fingerprint) as cached:
        cached(model, parts["calibration"][: 2 * CHUNK])
        cached(model, parts["test"])
    again = planned(tmp_path, parts)
    assert {(unit.part, unit.start) for unit in again.units} == {("calibration", s) for s in (16, 24, 32, 40)}


def test_equal_versions_are_computed_once(tmp_path: Path) -> None:
    work = planned(tmp_path, images())
    twin = Job(replace(work.jobs[0].card, name="twin", key="another"), DISTANCE)
    both = plan([*work.jobs, twin], work.images, work.site)
    assert both.units == work.units


def test_images_that_cannot_be_searched_are_refused_before_any_work(tmp_path: Path) -> None:
    parts = images()
    parts["test"][19] = float("nan")
    with pytest.raises(DataFormatError, match=r"1 of 26 images .the first is number 19"):
        planned(tmp_path, parts)


def units(*jobs_and_waves: tuple[int, int]) -> list[Unit]:
    return [Unit(job, "test", n, n + 1, 1, wave) for n, (job, wave) in enumerate(jobs_and_waves)]


def test_a_wave_starts_when_the_one_before_it_is_done() -> None:
    first, second, late, other = units((0, 0), (0, 0), (0, 1), (1, 0))
    schedule = Schedule([first, second, late, other], retries=0)
    assert [schedule.next(), schedule.next(), schedule.next(), schedule.next()] == [first, second, other, None]
    schedule.settle(first, None)
    assert schedule.next() is None
    schedule.settle(second, None)
    assert schedule.next() == late
    schedule.settle(late, None)
    assert not schedule.over
    schedule.settle(other, None)
    assert schedule.over


def test_a_worker_gets_units_of_the_version_that_it_has_loaded() -> None:
    first, second, other = units((0, 0), (0, 0), (1, 0))
    schedule = Schedule([first, second, other], retries=0)
    assert schedule.next(loaded=1) == other
    assert schedule.next(loaded=1) == first


def test_a_unit_is_tried_again_before_its_wave_ends_and_then_its_version_is_given_up() -> None:
    first, second, late, other = units((0, 0), (0, 0), (0, 1), (1, 0))
    schedule = Schedule([first, second, late, other], retries=1)
    assert [schedule.next(), schedule.next()] == [first, second]
    assert schedule.settle(first, "no luck") is None
    assert schedule.next() == first
    outcome = schedule.settle(first, "no luck again")
    assert outcome is not None
    assert outcome.error == "no luck again (tried 2 times)"
    assert schedule.settle(second, "neither") is None  # its version is given up already
    assert schedule.next() == other
    schedule.settle(other, None)
    assert schedule.over


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.uint8])
def test_images_reach_workers_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    x = (200 * torch.rand(5, 2, 3, 3)).to(dtype).permute(0, 1, 3, 2)  # not contiguous
    file = ImageFile.write(tmp_path / "x.raw", x)
    assert torch.equal(file.read(1, 4), x[1:4])
    assert file.read(1, 4).dtype == dtype
    assert torch.equal(Block.of(x[1:4]).images(), x[1:4])
    assert Block.of(x).images().dtype == dtype


def test_a_write_to_shared_images_reaches_nobody_else(tmp_path: Path) -> None:
    file = ImageFile.write(tmp_path / "x.raw", torch.ones(2, 1, 2, 2))
    file.read(0, 2).zero_()
    assert torch.equal(file.read(0, 2), torch.ones(2, 1, 2, 2))


def test_only_the_parts_with_work_are_laid_down_and_they_go_away() -> None:
    parts = {"calibration": torch.ones(2, 1, 2, 2), "test": torch.zeros(0, 1, 2, 2)}
    with image_files(parts, ["calibration", "calibration"]) as files:
        assert set(files) == {"calibration"}
        path = files["calibration"].path
        assert path.is_file()
    assert not path.parent.exists()


def test_images_of_dead_processes_are_removed_and_others_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    own = f"deepfailguard-images-{platform.node()}-"
    dead = f"{own}{process.pid}-x"
    others = [f"{own}{os.getppid()}-x", f"{own}formerly", f"deepfailguard-images-elsewhere-{process.pid}-x"]
    for name in (dead, *others):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.raw").touch()
    with image_files({"test": torch.ones(2, 1, 2, 2)}, ["test"]):
        left = {folder.name for folder in tmp_path.iterdir()}
        assert dead not in left
        assert left > set(others)
    assert {folder.name for folder in tmp_path.iterdir()} == set(others)


def test_a_program_s_own_handler_of_sigterm_stays() -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with exit_on_sigterm():
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with exit_on_sigterm():
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_an_estimator_that_cannot_be_pickled_leaves_no_pipe_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stubborn:
        def __reduce__(self) -> str:
            raise pickle.PicklingError("never")

    ends, pipe = [], multiprocessing.get_context("spawn").Pipe
    monkeypatch.setattr(type(multiprocessing.get_context("spawn")), "Pipe", lambda _: ends.extend(pipe()) or ends)
    work = planned(tmp_path, images())
    briefing = Briefing((replace(work.jobs[0], estimator=Stubborn()),), {}, work.site, 1)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="cannot be sent to another process: never"):
        Crew(1, lambda _: briefing).hand_out(Schedule(work.units, retries=0))
    assert len(ends) == 2
    assert all(end.closed for end in ends)


def test_an_actor_s_own_gpu_is_its_first(tmp_path: Path) -> None:
    site = replace(planned(tmp_path, images()).site, device=torch.device("cuda:3"))
    assert site_of_actor(site) == replace(site, device=torch.device("cuda"))
    assert site_of_actor(replace(site, device=CPU)).device == CPU


def test_a_cluster_without_gpus_says_what_it_lacks() -> None:
    ray = SimpleNamespace(nodes=lambda: [{"Alive": True, "Resources": {"CPU": 4.0}}])
    with pytest.raises(ConfigurationError, match=r"device=mps was asked for, but .* Ray's resource 'GPU'"):
        ray_data._share(ray, None, torch.device("mps"))  # type: ignore[arg-type]
    assert ray_data._share(ray, None, CPU).actors == 4  # type: ignore[arg-type]


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Path, __: object) -> int:
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StoreError, match=r"no space left on device; set the environment variable TMPDIR"):
        ImageFile.write(tmp_path / "x.raw", torch.ones(2, 1, 2, 2))


def test_workers_share_cores_and_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    assert threads_of_worker(1) == cores()
    assert threads_of_worker(cores() + 1) == 1
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert [str(device_of_worker(torch.device("cuda"), place)) for place in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert device_of_worker(torch.device("cuda:1"), 0) == torch.device("cuda:1")
    assert device_of_worker(CPU, 3) == CPU
    assert [processes._places(torch.device(name)) for name in ("cuda", "cuda:1", "cpu")] == [2, 1, cores()]


@pytest.mark.parametrize("launcher", [Processes, RayData])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workers": 0}, r"launcher\.workers must be a whole number of at least 1, got 0"),
        ({"workers": "two"}, r"launcher\.workers must be .* got 'two'"),
        ({"workers": 1.5}, r"launcher\.workers must be .* got 1\.5"),
        ({"retries": -1}, r"launcher\.retries must be a whole number of at least 0, got -1"),
    ],
)
def test_wrong_settings_are_refused_at_once(
    launcher: type[Processes] | type[RayData], settings: dict[str, int], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        launcher(**settings)


def test_missing_ray_is_named_at_once_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'deepfailguard\[ray\]'"):
        RayData()


def test_a_cluster_that_does_not_answer_is_named(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # nobody listens there
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(ConfigurationError, match=f"no Ray cluster answers at the address '{address}'"):
            next(RayData(workers=1, address=address).run(planned(tmp_path, images())))
