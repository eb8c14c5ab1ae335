"""The layers that architectures share."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mymodel.layers import AtLeast, Standardise, convolution, initialise, pooled_features, prepared


def test_standardise_is_affine_and_hides_no_scaling():
    images = torch.rand(3, 1, 4, 4)
    assert torch.allclose(Standardise()(images), images * 4 - 2)
    assert torch.allclose(Standardise()(images * 0.5).std(), 0.5 * Standardise()(images).std())


def test_at_least_leaves_large_images_alone():
    images = torch.rand(2, 3, 16, 20)
    assert AtLeast(16)(images) is images


def test_at_least_enlarges_only_the_short_side():
    images = torch.rand(2, 3, 8, 40)
    enlarged = AtLeast(16)(images)
    assert enlarged.shape == (2, 3, 16, 40)
    assert torch.allclose(enlarged, F.interpolate(images, (16, 40), mode="bilinear", align_corners=False))
    assert enlarged.min() >= images.min()
    assert enlarged.max() <= images.max()


def test_prepared_body_sees_enlarged_standardised_images():
    images = torch.rand(2, 1, 8, 8)
    assert torch.allclose(prepared(nn.Identity(), 12)(images), AtLeast(12)(images) * 4 - 2)


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_convolution_keeps_the_image_size(kernel):
    output = convolution(3, 7, kernel)(torch.rand(2, 3, 9, 6))
    assert output.shape == (2, 7, 9, 6)
    assert output.min() >= 0


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_pooled_features_of_any_size(size):
    maps = torch.rand(2, 5, size, size)
    assert pooled_features(3)(maps).shape == (2, 45)
    assert torch.allclose(pooled_features(1)(maps), maps.mean(dim=(2, 3)))


def test_initialise_keeps_the_signal_through_many_layers():
    layers = [layer for _ in range(12) for layer in (nn.Linear(256, 256), nn.ReLU())]
    network = initialise(nn.Sequential(*layers))
    signal = torch.randn(64, 256)
    ratio = network(signal).square().mean() / signal.square().mean()
    assert 0.1 < ratio < 10
    assert all((layer.bias == 0).all() for layer in layers if isinstance(layer, nn.Linear))
