"""Oracle for the numbers: scipy's own object. For the safety: pickles that would do harm if anything ran."""

import copyreg
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import gaussian_kde, norm

from deepfailguard.boundary.published_kde import read_published_kde
from deepfailguard.errors import CorruptFileError, DataFormatError, DataNotFoundError
from deepfailguard.seeding import generator


def numbers(count: int) -> np.ndarray:
    return torch.rand(count, generator=generator(0, "kde"), dtype=torch.float64).numpy() ** 2 * 5


def written(path: Path, value: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    return path


@pytest.mark.parametrize("count", [2, 5, 400])
def test_density_is_that_of_scipy(tmp_path: Path, count: int) -> None:
    points = numbers(count)
    oracle = gaussian_kde(points)
    got = read_published_kde(written(tmp_path / "kde.pkl", oracle))
    assert got.points.dtype == torch.float64
    np.testing.assert_array_equal(got.points.numpy(), points)
    at = np.linspace(-1.0, 6.0, 9)
    density = norm.pdf(at[:, None], got.points.numpy(), got.bandwidth).mean(1)
    np.testing.assert_allclose(density, oracle(at), rtol=1e-9)


def test_older_module_names_float32_and_a_plain_factor_are_read(tmp_path: Path) -> None:
    oracle = gaussian_kde(numbers(30))
    oracle.dataset = oracle.dataset.astype(np.float32)
    oracle.factor = float(oracle.factor)
    path = written(tmp_path / "kde.pkl", oracle)
    old = path.read_bytes()
    for new, wanted in (
        (b"scipy.stats._kde", b"scipy.stats.kde"),
        (b"numpy._core.multiarray", b"numpy.core.multiarray"),
    ):
        old = old.replace(bytes([len(new)]) + new, bytes([len(wanted)]) + wanted)  # strings carry their length
    # The frame's length no longer fits, and a frame is not needed.
    start = old.index(b"\x95")
    path.write_bytes(old[:start] + old[start + 9 :])
    got = read_published_kde(path)
    assert b"numpy.core.multiarray" in path.read_bytes()
    np.testing.assert_array_equal(got.points.numpy(), oracle.dataset[0].astype(np.float64))
    assert got.bandwidth == pytest.approx(oracle.factor * oracle.dataset.std(ddof=1), rel=1e-5)


class Harm:
    """Touches a file when it is unpickled in earnest."""

    def __init__(self, reduced: tuple[Any, ...]) -> None:
        self.reduced = reduced

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


def harms(marker: Path) -> dict[str, Any]:
    command = f"touch {marker}"
    poisoned = gaussian_kde(numbers(9))
    poisoned.factor = Harm((os.system, (command,)))
    return {
        "system": Harm((os.system, (command,))),
        "eval": Harm((eval, (f"__import__('os').system({command!r})",))),
        "getattr": Harm((getattr, (poisoned, "__class__"))),
        "inside a density": poisoned,
        "module function of numpy": Harm((np.load, (str(marker),))),
        "import by extension": Harm((copyreg.add_extension, ("os", "system", 1))),
    }


@pytest.mark.parametrize("kind", list(harms(Path())))
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_malicious_file_is_refused_and_nothing_runs(tmp_path: Path, kind: str, protocol: int) -> None:
    marker = tmp_path / "marker"
    path = written(tmp_path / "evil.pkl", harms(marker)[kind], protocol)
    with pytest.raises(DataFormatError, match=r"evil\.pkl.*refused"):
        read_published_kde(path)
    assert not marker.exists()


def test_the_harm_is_real(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    pickle.loads(pickle.dumps(harms(marker)["system"]))  # noqa: S301 (our own bytes: shows that the test above tests)
    assert marker.exists()


def test_the_refused_name_is_told(tmp_path: Path) -> None:
    path = written(tmp_path / "evil.pkl", Harm((os.system, ("true",))))
    with pytest.raises(DataFormatError, match=r"asks for (posix|nt)\.system, which no density needs"):
        read_published_kde(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x04Psomething\n.", "opcode PERSID at byte 2"),
        (b"\x80\x04\x82\x01.", "opcode EXT1"),
        (b"\x80\x04Nr\xff\xff\xff\xff.", "memo index of 4294967295"),
        (b"\x80\x04cnumpy\nndarray.__class__\n.", "asks for numpy.ndarray.__class__"),
    ],
)
def test_opcodes_that_no_density_needs_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "odd.pkl"
    path.write_bytes(content)
    with pytest.raises(DataFormatError, match=rf"odd\.pkl.*{message}"):
        read_published_kde(path)


def changed(**state: Any) -> gaussian_kde:
    density = gaussian_kde(numbers(9))
    density.__dict__.update(state)
    return density


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1.0, 2.0], "holds a list, expected a gaussian_kde"),
        (np.arange(3.0), "holds a Array, expected a gaussian_kde"),
        (changed(dataset=None), "its dataset is not a number or an array"),
        (changed(dataset=np.ones((2, 4))), "its dataset is not a number or an array"),
        (changed(dataset=np.array([[1, 2, 3]])), r"its dataset has the type .*expected float32 or float64"),
        (changed(dataset=np.array([[1.0, np.nan]])), "finite points"),
        (changed(dataset=np.array([[1.0]])), "got 1 points"),
        (changed(dataset=np.ones((1, 4))), "its bandwidth is 0.0"),
        (changed(factor=float("inf")), "its bandwidth is inf"),
        (changed(factor="wide"), "its factor is not a number"),
    ],
)
def test_densities_that_cannot_be_used_are_refused(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(DataFormatError, match=message):
        read_published_kde(written(tmp_path / "kde.pkl", value))


@pytest.mark.parametrize("kept", [0, 1, 100, -1])
def test_torn_files_are_named(tmp_path: Path, kept: int) -> None:
    path = written(tmp_path / "kde.pkl", gaussian_kde(numbers(9)))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CorruptFileError, match=r"kde\.pkl is not a whole pickle"):
        read_published_kde(path)


def test_missing_and_huge_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match="no density file"):
        read_published_kde(tmp_path / "none.pkl")
    with (tmp_path / "huge.pkl").open("wb") as file:
        file.truncate(2**26 + 1)
    with pytest.raises(DataFormatError, match="larger than"):
        read_published_kde(tmp_path / "huge.pkl")
