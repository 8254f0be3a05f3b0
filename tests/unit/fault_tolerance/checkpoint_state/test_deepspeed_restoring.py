"""An engine takes over every bit of a checkpoint that fits, and refuses another before it is touched."""

from __future__ import annotations

import pytest
import torch

from production_ml.core.errors import CheckpointMismatchError
from production_ml.fault_tolerance.checkpoint_format.boxes import whole
from production_ml.fault_tolerance.checkpoint_format.manifest import TensorEntry
from production_ml.fault_tolerance.checkpoint_format.tensor_types import DTYPE_NAMES
from production_ml.fault_tolerance.checkpoint_state.capture import capture
from production_ml.fault_tolerance.checkpoint_state.deepspeed_restoring import EngineRestoration


@pytest.fixture
def saved(engine):
    """What a checkpoint holds of an engine: its JSON, and whole tensors by name."""
    captured = capture(engine, None, {}, random_state=False)
    tensors = {name: tensor.detach().clone() for name, tensor in captured.tensors.items()}
    for piece in captured.pieces.values():
        target = tensors.setdefault(piece.name, torch.empty(piece.shape, dtype=piece.data.dtype))
        target[piece.box.slices_within(whole(tuple(piece.shape)))] = piece.data
    return captured.values, tensors


def restoration(engine, saved) -> EngineRestoration:
    values, tensors = saved
    entries = {
        name: TensorEntry(dtype=DTYPE_NAMES[tensor.dtype], shape=tuple(tensor.shape), chunks=())
        for name, tensor in tensors.items()
    }
    return EngineRestoration(engine, values, entries)


def masters(engine) -> torch.Tensor:
    return engine.optimizer.single_partition_of_fp32_groups[0].detach()


def test_another_engine_goes_on_as_the_saved_one_does(engine, engine_of, saved):
    other = engine_of(1)

    restoration(other, saved).apply(saved[1])

    assert torch.equal(masters(other), masters(engine))
    assert torch.equal(other.module[0].weight, engine.module[0].weight)
    assert other.global_steps == 2
    other.step()
    engine.step()
    assert torch.equal(masters(other), masters(engine))


def test_parameters_whose_counts_of_steps_differ_in_what_is_not_printed_are_refused(engine_of, saved):
    values, tensors = saved
    for name, tensor in tensors.items():
        if name.startswith("optimizer.step."):
            tensor.fill_(123456784.0)
    tensors["optimizer.step.1.bias"] += 8
    other = engine_of(1)
    before = masters(other).clone()

    with pytest.raises(CheckpointMismatchError, match=r"'1\.bias'(?s:.*)DeepSpeed steps a group as one"):
        restoration(other, (values, tensors)).apply(tensors)

    assert torch.equal(masters(other), before)


def test_a_parameter_of_another_shape_is_refused_by_name(engine_of, saved):
    values, tensors = saved
    tensors["model.0.weight"] = torch.zeros(2, 4)

    with pytest.raises(CheckpointMismatchError, match=r"'0\.weight' has the shape \[2, 3\], but \[2, 4\]"):
        restoration(engine_of(1), (values, tensors))


def test_another_kind_of_optimizer_is_refused(engine_of, saved):
    other = engine_of(1)
    other.optimizer.optimizer = torch.optim.SGD(other.optimizer.single_partition_of_fp32_groups)

    with pytest.raises(CheckpointMismatchError, match="holds the state of AdamW, but the engine's optimizer is SGD"):
        restoration(other, saved)
