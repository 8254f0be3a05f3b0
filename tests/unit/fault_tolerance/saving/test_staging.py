"""Staged copies have every bit of the original, are of one moment, and reuse their memory."""

from __future__ import annotations

import contextlib
import threading
import weakref

import pytest
import torch

from production_ml.fault_tolerance.checkpoint_format.tensor_types import DTYPE_NAMES, as_bytes
from production_ml.fault_tolerance.saving.shard_plan import ShardPlan, ShardPlanner
from production_ml.fault_tolerance.saving.staging import Staging, TornSaveError, Transfer

LARGE = 1 << 17
"""Elements of a tensor that is worth copying later."""


@pytest.fixture
def planner() -> ShardPlanner:
    return ShardPlanner(rank=0)


@pytest.fixture
def staging():
    staging = Staging()
    yield staging
    staging.close()


def staged(staging: Staging, plan: ShardPlan) -> dict[str, bytes]:
    """The bytes of each tensor in the image."""
    data = staging.image.data
    return {key: bytes(data[extent.begin : extent.end]) for key, extent in plan.contents.layout.extents.items()}


def bytes_of(tensor: torch.Tensor) -> bytes:
    return bytes(as_bytes(tensor.resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)))


def begin(staging: Staging, plan: ShardPlan, *deferrable: torch.Tensor) -> Transfer:
    return staging.begin(plan, {id(tensor) for tensor in deferrable})


def test_what_may_not_wait_is_copied_before_begin_returns(staging, planner):
    original = torch.ones(LARGE)
    plan = planner.plan({"x": original})
    transfer = begin(staging, plan)
    original.zero_()
    transfer.run()

    assert staged(staging, plan)["x"] == bytes_of(torch.ones(LARGE))


def test_small_tensors_are_copied_at_once_though_they_may_wait(staging, planner):
    original = torch.ones(3)
    plan = planner.plan({"x": original})
    transfer = begin(staging, plan, original)
    original.zero_()
    transfer.run()

    assert staged(staging, plan)["x"] == bytes_of(torch.ones(3))


def test_what_may_wait_is_copied_later(staging, planner):
    original = torch.ones(LARGE)
    plan = planner.plan({"x": original})
    transfer = begin(staging, plan, original)
    assert staged(staging, plan)["x"] == bytes(4 * LARGE)

    transfer.run()

    assert staged(staging, plan)["x"] == bytes_of(original)


@pytest.mark.parametrize("change", ["itself", "a view", "detached", "a slice"])
def test_what_was_changed_in_place_before_it_was_copied_is_torn(staging, planner, change):
    original = torch.nn.Parameter(torch.ones(LARGE))
    plan = planner.plan({"model.w": original})
    transfer = begin(staging, plan, original)
    with torch.no_grad():
        {"itself": original, "a view": original.view(2, -1), "detached": original.detach(), "a slice": original[:1]}[
            change
        ].zero_()

    with pytest.raises(TornSaveError, match=r"'model\.w' changed in place") as raised:
        transfer.run()

    assert "From now on save() copies everything" in raised.value.cure


def test_a_torn_save_counts_the_tensors_that_it_does_not_name(staging, planner):
    tensors = {f"w{number}": torch.ones(LARGE) for number in range(3)}
    transfer = begin(staging, planner.plan(tensors), *tensors.values())
    for tensor in tensors.values():
        tensor.zero_()

    with pytest.raises(TornSaveError, match="'w0' and 2 more changed"):
        transfer.run()


def test_training_is_held_back_until_all_is_copied_even_if_the_copy_is_torn(staging, planner):
    original = torch.ones(LARGE)
    transfer = begin(staging, planner.plan({"x": original}), original)
    original.zero_()
    went_on = threading.Event()
    training = threading.Thread(target=lambda: (transfer.let_change(), went_on.set()))
    training.start()
    assert not went_on.is_set()

    with pytest.raises(TornSaveError):
        transfer.run()

    training.join()
    assert went_on.is_set()


def test_where_nothing_is_copied_later_training_is_not_held_back(staging, planner):
    begin(staging, planner.plan({"x": torch.ones(LARGE)})).let_change()


def test_tensors_of_inference_count_no_changes_and_are_copied_at_once(staging, planner):
    with torch.inference_mode():
        original = torch.ones(LARGE)
    plan = planner.plan({"x": original})
    begin(staging, plan, original)

    assert staged(staging, plan)["x"] == bytes_of(original)


@pytest.mark.parametrize("is_deferred", [False, True])
def test_every_type_shape_and_stride_is_copied_bit_for_bit(staging, planner, is_deferred):
    tensors = {}
    for number, dtype in enumerate(DTYPE_NAMES):
        data = torch.arange(number, number + 24 * dtype.itemsize, dtype=torch.uint8).view(dtype).reshape(4, 6)
        if dtype is torch.bool:
            data = torch.arange(24).reshape(4, 6) % 3 == 0
        tensors |= {f"{dtype} {name}": view for name, view in {"t": data.t(), "0": data[1, 1], "e": data[:0]}.items()}
    tensors["expanded"] = torch.tensor(3.0).expand(2, 2)
    tensors["conjugated"] = torch.tensor([1 + 2j]).conj()
    tensors["negative"] = torch.tensor([1 + 2j]).conj().imag
    tensors["large transposed"] = torch.arange(2.0 * LARGE).reshape(2, LARGE).t()
    tensors["large conjugated"] = torch.full((LARGE,), 1 + 2j).conj()

    plan = planner.plan(tensors)
    begin(staging, plan, *(tensors.values() if is_deferred else ())).run()

    found = staged(staging, plan)
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert found[name] == bytes_of(tensor), name


def test_memory_is_reused_for_the_same_layout(staging, planner):
    def save(value: float) -> tuple[int, bytes]:
        tensors = {"x": torch.full((100,), value), "flag": torch.ones(3, dtype=torch.bool)}
        plan = planner.plan(tensors)
        begin(staging, plan).run()
        return torch.frombuffer(staging.image.data, dtype=torch.uint8).data_ptr(), staged(staging, plan)["x"]

    first, second = save(1.0), save(0.0)

    assert second[0] == first[0]
    assert second[1] == bytes(400)


def test_a_model_that_grows_and_shrinks_is_laid_out_anew(staging, planner):
    for size in (2, 30_000, 5):
        tensors = {"x": torch.full((size,), float(size)), "y": torch.tensor(size)}
        plan = planner.plan(tensors)
        begin(staging, plan).run()

        assert staged(staging, plan) == {name: bytes_of(tensor) for name, tensor in tensors.items()}


def test_a_state_without_tensors_is_staged_too(staging, planner):
    begin(staging, planner.plan({})).run()
    begin(staging, planner.plan({"x": torch.empty(0)})).run()


@pytest.mark.parametrize("is_torn", [False, True])
def test_a_transfer_that_has_ended_keeps_no_tensor_alive(staging, planner, is_torn):
    original = torch.ones(LARGE)
    held = weakref.ref(original)
    transfer = begin(staging, planner.plan({"x": original}), original)
    if is_torn:
        original.zero_()
    with pytest.raises(TornSaveError) if is_torn else contextlib.nullcontext():
        transfer.run()

    del original

    assert held() is None
    transfer.let_change()


def test_a_parameter_of_other_strides_is_copied_later_too(staging, planner):
    original = torch.nn.Parameter(torch.arange(2.0 * LARGE).reshape(2, LARGE).t())
    plan = planner.plan({"x": original})

    begin(staging, plan, original).run()

    assert staged(staging, plan)["x"] == bytes_of(original.detach())
