import pytest
import torch
from torch import nn

from deepfailguard.boundary.searching import check_inputs, searching
from deepfailguard.errors import DataFormatError
from deepfailguard.types import Bounds


def test_inputs_at_the_bounds_are_accepted() -> None:
    # 0.1 as float32 lies above 0.1 as a double: the check must not refuse it.
    check_inputs(torch.tensor([[0.1, -0.3]]), Bounds(-0.3, 0.1))
    check_inputs(torch.empty(0, 3, 8, 8), Bounds())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -0.01, 1.01])
def test_the_first_bad_image_is_named(bad: float) -> None:
    images = torch.full((5, 1, 2, 2), 0.5)
    images[3, 0, 1, 1] = bad
    images[4] = bad
    with pytest.raises(DataFormatError, match=r"2 of 5 images \(the first is number 3.*with_bounds"):
        check_inputs(images, Bounds())


@pytest.mark.parametrize("images", [torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(4)])
def test_other_dtypes_and_shapes_are_refused(images: torch.Tensor) -> None:
    with pytest.raises(DataFormatError, match="expected floating point images"):
        check_inputs(images, Bounds())


def test_the_model_is_left_as_it_was_even_after_an_error() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(), nn.Linear(3, 2))
    model[1].eval()
    model[2].bias.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    with torch.no_grad():
        with pytest.raises(KeyError, match="inside"), searching(model):
            assert torch.is_grad_enabled()
            assert not any(module.training for module in model.modules())
            assert not any(parameter.requires_grad for parameter in model.parameters())
            raise KeyError("inside")
        assert not torch.is_grad_enabled()
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == [True, True, True, False]
