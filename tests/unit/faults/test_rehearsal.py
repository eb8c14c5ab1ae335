import pytest
import torch

from deepfailguard.errors import ConfigurationError
from deepfailguard.faults.rehearsal import KINDS, Kind, Rehearsal
from deepfailguard.types import Bounds

BOUNDS = Bounds(-1.0, 3.0)
IMAGES = BOUNDS.low + BOUNDS.width * torch.rand(30, 2, 12, 10, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_changes_images_inside_the_bounds(kind: Kind) -> None:
    before = IMAGES.clone()
    (changed,) = Rehearsal(inputs=20, kinds=(kind,)).apply(IMAGES, BOUNDS, seed=1)
    assert torch.equal(IMAGES, before)
    assert changed.images.shape == (20, 2, 12, 10)
    assert changed.source.unique().numel() == 20
    assert not BOUNDS.outside(changed.images).any()
    moved = (changed.images - IMAGES[changed.source]).flatten(1).norm(dim=1)
    assert (moved > 0).all()
    assert moved.max() > 1.5 * moved.min()  # a degree for each image


def test_the_same_seed_gives_the_same_images_and_another_does_not() -> None:
    one, same, other = (list(Rehearsal(inputs=5).apply(IMAGES, BOUNDS, seed)) for seed in (1, 1, 2))
    assert [each.kind for each in one] == list(KINDS)
    assert all(torch.equal(a.images, b.images) for a, b in zip(one, same, strict=True))
    assert not any(torch.equal(a.images, b.images) for a, b in zip(one, other, strict=True))


def test_a_kind_is_drawn_alike_whatever_the_others_are() -> None:
    (alone,) = Rehearsal(inputs=5, kinds=("zoom",)).apply(IMAGES, BOUNDS, seed=1)
    beside = list(Rehearsal(inputs=5).apply(IMAGES, BOUNDS, seed=1))[KINDS.index("zoom")]
    assert torch.equal(alone.images, beside.images)


def test_one_grey_pixel_and_few_images_are_no_problem() -> None:
    changed = list(Rehearsal(inputs=50).apply(torch.full((2, 1, 1, 1), 0.5), Bounds(), seed=0))
    assert len(changed) == len(KINDS)
    assert all(len(each.images) == 2 and torch.isfinite(each.images).all() for each in changed)


@pytest.mark.parametrize("kinds", [("fog",), ("noise", "noise")])
def test_unknown_and_double_kinds_are_refused(kinds: tuple[Kind, ...]) -> None:
    with pytest.raises(ConfigurationError, match="kinds must be some of noise, blur"):
        Rehearsal(kinds=kinds)
    with pytest.raises(ConfigurationError, match="at least one input"):
        Rehearsal(inputs=0)
