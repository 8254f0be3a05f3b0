"""What torch does not count is noticed all the same."""

from __future__ import annotations

import pytest
import torch

from production_ml.fault_tolerance.saving.samples import take_sample

CHANGES = {
    "scaled": lambda weights: weights.mul_(1.1),
    "clipped": lambda weights: weights.clamp_(-0.1, 0.1),
    "overwritten": lambda weights: weights.copy_(torch.randn_like(weights)),
    "zeroed": lambda weights: weights.zero_(),
    "doubled": lambda weights: weights.mul_(2.0),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_change_of_the_weights_changes_the_sample(change, dtype):
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(1000, 33, dtype=torch.float32).to(dtype))
    before, version = take_sample(parameter), parameter._version

    change(parameter.data)

    assert parameter._version == version
    assert take_sample(parameter) != before


def test_a_copy_has_the_sample_of_its_source():
    source = torch.randn(12345)

    assert take_sample(source.clone()) == take_sample(source)


@pytest.mark.parametrize("tensor", [torch.ones(4, 4).t()[:2], torch.ones(2, dtype=torch.complex64).conj()])
def test_what_does_not_lie_in_one_piece_has_none(tensor):
    assert take_sample(tensor) is None


def test_a_tiny_tensor_has_an_empty_one():
    assert take_sample(torch.ones(1)) == b""
