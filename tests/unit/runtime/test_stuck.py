"""Whether a version repeats itself: never said because the same images come again."""

import torch

from deepfailguard.runtime.stuck import StuckCheck, keys_of


def test_an_image_has_one_key_in_all_batches() -> None:
    images = torch.rand(64, 3, 17, 19, generator=torch.Generator().manual_seed(1))
    keys = keys_of(images)
    for count in (1, 5, 33):
        assert torch.equal(keys_of(images[:count]), keys[:count])
        assert torch.equal(keys_of(images[-count:].clone()), keys[-count:])
    assert len(keys.unique()) == 64


def test_a_pixel_that_differs_by_the_least_makes_another_key() -> None:
    image = torch.rand(1, 1, 8, 8)
    other = image.clone()
    other[0, 0, 3, 3] = torch.nextafter(other[0, 0, 3, 3], torch.tensor(2.0))
    assert keys_of(image) != keys_of(other)


def test_images_that_come_again_in_other_batches_raise_no_suspicion() -> None:
    images = torch.rand(40, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    logits = torch.rand(40, 10, dtype=torch.float64)
    check = StuckCheck()
    for count in (24, 40, 32, 7, 33):
        assert not check.suspects(keys_of(images[:count]), logits[:count], torch.ones(count, dtype=torch.bool))
    assert check.suspects(keys_of(images[5:12]), logits[:7], torch.ones(7, dtype=torch.bool))
