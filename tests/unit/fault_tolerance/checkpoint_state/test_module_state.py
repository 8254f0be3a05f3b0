"""A module's state has the same names whatever wraps it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from production_ml.core.errors import CheckpointMismatchError, CheckpointWriteError
from production_ml.fault_tolerance.checkpoint_format.manifest import TensorEntry
from production_ml.fault_tolerance.checkpoint_format.tensor_types import DTYPE_NAMES
from production_ml.fault_tolerance.checkpoint_state.capture_cache import CaptureCache
from production_ml.fault_tolerance.checkpoint_state.module_state import (
    ModuleRestoration,
    capture_module,
    live_state,
    parameter_names,
)


def entries_of(tensors: dict[str, torch.Tensor]) -> dict[str, TensorEntry]:
    return {
        name: TensorEntry(dtype=DTYPE_NAMES[tensor.dtype], shape=tuple(tensor.shape), chunks=())
        for name, tensor in tensors.items()
    }


def captured(module: nn.Module):
    tensors: dict[str, torch.Tensor] = {}
    encoded = capture_module(live_state(module), "model", tensors, CaptureCache())
    return encoded, {name: tensor.detach().clone() for name, tensor in tensors.items()}


def restore(module: nn.Module, encoded, tensors) -> ModuleRestoration:
    return ModuleRestoration(module, "the model", encoded, entries_of(tensors))


@pytest.mark.filterwarnings("ignore:.*script_method. is deprecated:DeprecationWarning")  # torch.compile's own imports
def test_wrappers_do_not_change_names():
    plain = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    names = list(plain.state_dict())

    inner = nn.Sequential(checkpoint_wrapper(plain[0]), plain[1])
    for wrapped in (torch.compile(plain), nn.DataParallel(plain), torch.compile(nn.DataParallel(inner))):
        assert list(live_state(wrapped)) == names


def test_state_moves_between_wrapped_and_plain_modules():
    source = nn.Linear(2, 3)
    encoded, tensors = captured(nn.DataParallel(source))
    target = nn.Sequential(nn.Linear(2, 3))[0]

    restore(target, encoded, tensors).apply(tensors)

    assert torch.equal(target.weight, source.weight)


def test_a_tied_parameter_has_its_first_name():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[1].weight = module[0].weight

    assert parameter_names(live_state(module))[id(module[1].weight)] == "0.weight"


class WithExtraState(nn.Module):
    def __init__(self, calls: int) -> None:
        super().__init__()
        self.calls = calls

    def get_extra_state(self):
        return {"calls": self.calls, "history": torch.arange(self.calls)}

    def set_extra_state(self, state):
        self.calls = state["calls"]
        self.history = state["history"]


def test_what_a_module_keeps_as_extra_state_comes_back():
    encoded, tensors = captured(WithExtraState(3))
    target = WithExtraState(0)

    restore(target, encoded, tensors).apply(tensors)

    assert (target.calls, target.history.tolist()) == (3, [0, 1, 2])


@pytest.mark.parametrize("mark", ["ds_tensor", "_hp_mapping"])
def test_the_module_of_a_zero_engine_is_refused_with_the_cure_also_where_it_was_saved_before(mark):
    module, cache = nn.Linear(2, 3), CaptureCache()
    capture_module(live_state(module), "model", {}, cache)
    encoded, tensors = captured(nn.Linear(2, 3))
    setattr(module.bias, mark, None)  # as DeepSpeed marks its parameters; a rank without a part of it holds None

    with pytest.raises(CheckpointWriteError, match=r"'bias'(?s:.*)save\(model=engine\)"):
        capture_module(live_state(module), "model", {}, cache)
    with pytest.raises(CheckpointWriteError, match=r"'bias'(?s:.*)load_latest\(engine\)"):
        restore(module, encoded, tensors)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (nn.Linear(2, 4), r"the model's 'weight' has the shape \[4, 2\], but \[3, 2\] in the checkpoint"),
        (nn.Linear(2, 3, dtype=torch.bfloat16), r"'weight' is torch.bfloat16, but torch.float32"),
        (nn.Linear(2, 3, bias=False), r"the checkpoint has 'bias', which the model does not have"),
        (nn.Sequential(nn.Linear(2, 3)), r"the checkpoint has no '0\.weight'"),
        (nn.Linear(2, 3, device="meta"), r"'weight' has no memory yet"),
        (nn.LazyLinear(3), r"'weight' has no memory yet"),
    ],
)
def test_a_module_that_does_not_fit_is_refused_by_name_when_the_plan_is_made(other, message):
    encoded, tensors = captured(nn.Linear(2, 3))

    with pytest.raises(CheckpointMismatchError, match=message):
        restore(other, encoded, tensors)


def test_a_buffer_whose_elements_share_memory_is_refused_before_anything_is_loaded():
    def build() -> nn.Module:
        module = nn.Linear(2, 2)
        module.register_buffer("spread", torch.zeros(1).expand(3))
        return module

    encoded, tensors = captured(build())

    with pytest.raises(CheckpointMismatchError, match=r"'spread' has elements that share memory"):
        restore(build(), encoded, tensors)


def test_a_wider_type_takes_a_narrower_one_exactly_where_that_is_asked_for():
    encoded, tensors = captured(nn.Linear(2, 3, dtype=torch.bfloat16))
    target = nn.Linear(2, 3)

    ModuleRestoration(target, "the model", encoded, entries_of(tensors), may_widen=True).apply(tensors)

    assert target.weight.dtype == torch.float32
    assert torch.equal(target.weight, tensors["model.weight"].float())
    wide, wide_tensors = captured(nn.Linear(2, 3))
    narrow = nn.Linear(2, 3, dtype=torch.bfloat16)
    with pytest.raises(CheckpointMismatchError, match=r"'weight' is torch.bfloat16, but torch.float32"):
        ModuleRestoration(narrow, "the model", wide, entries_of(wide_tensors), may_widen=True)
