"""A plan tells whether a checkpoint fits before anything is touched, and reads no more than it needs."""

from __future__ import annotations

import pytest
import torch

from production_ml.core.errors import CheckpointMismatchError, ConfigError
from production_ml.fault_tolerance.checkpoint_format.manifest import Manifest, TensorEntry
from production_ml.fault_tolerance.checkpoint_format.tensor_types import DTYPE_NAMES
from production_ml.fault_tolerance.checkpoint_state.capture import capture
from production_ml.fault_tolerance.checkpoint_state.restoring import plan_restoration


def saved(model, optimizer, **extra):
    captured = capture(model, optimizer, extra)
    tensors = {name: tensor.detach().clone() for name, tensor in captured.tensors.items()}
    entries = {
        name: TensorEntry(dtype=DTYPE_NAMES[tensor.dtype], shape=tuple(tensor.shape), chunks=())
        for name, tensor in tensors.items()
    }
    manifest = Manifest(
        step=1,
        save_id="a",
        created_at=0.0,
        world_size=1,
        metrics={},
        values=captured.values,
        files={},
        tensors=entries,
    )
    return manifest, tensors


class Counter:
    """A sampler, as far as checkpoints are concerned."""

    def __init__(self, count: int) -> None:
        self.count = count

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        if state["count"] < 0:
            raise ValueError("a negative count")
        self.count = state["count"]


def test_extras_come_back_by_name_and_objects_in_place(trained, fresh):
    manifest, tensors = saved(*trained, sampler=Counter(7), epoch=3)
    model, optimizer = fresh(1)
    sampler = Counter(0)

    extras = plan_restoration(manifest, model, optimizer, {"sampler": sampler}).apply(tensors)

    assert sampler.count == 7
    assert extras == {"sampler": sampler, "epoch": 3}
    assert torch.equal(model[0].weight, trained[0][0].weight)


def test_an_object_that_is_not_given_comes_back_as_its_state(trained, fresh):
    manifest, tensors = saved(*trained, sampler=Counter(7))

    assert plan_restoration(manifest, *fresh(1), {}).apply(tensors) == {"sampler": {"count": 7}}


def test_an_ema_model_is_loaded_in_place(trained, fresh):
    manifest, tensors = saved(*trained, ema=torch.nn.Linear(1, 1))
    ema = torch.nn.Linear(1, 1)

    plan_restoration(manifest, *fresh(1), {"ema": ema}).apply(tensors)

    assert torch.equal(ema.weight, tensors["extra.ema.weight"])


def test_without_an_optimizer_its_state_is_not_read(trained, fresh):
    manifest, _ = saved(*trained)

    boxes = plan_restoration(manifest, fresh()[0], None, {}).boxes

    assert not [name for name in boxes if name.startswith("optimizer.")]


def test_an_object_that_refuses_its_state_leaves_the_model_untouched(trained, fresh):
    manifest, tensors = saved(*trained, sampler=Counter(-1))
    model, optimizer = fresh(1)
    before = model[0].weight.clone()

    with pytest.raises(CheckpointMismatchError, match=r"'sampler'.*a negative count"):
        plan_restoration(manifest, model, optimizer, {"sampler": Counter(0)}).apply(tensors)

    assert torch.equal(model[0].weight, before)
    assert not optimizer.state


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"other": Counter(0)}, "holds no 'other'"),
        ({"epoch": Counter(0)}, "'epoch' was saved as a value"),
        ({"sampler": torch.nn.Linear(1, 1)}, "'sampler' was saved as a object, but is given as a module"),
    ],
)
def test_an_extra_that_was_not_saved_so_is_refused(trained, fresh, extra, message):
    manifest, _ = saved(*trained, sampler=Counter(7), epoch=3)

    with pytest.raises(CheckpointMismatchError, match=message):
        plan_restoration(manifest, *fresh(), extra)


def test_a_plain_value_cannot_be_loaded_in_place(trained, fresh):
    manifest, _ = saved(*trained, epoch=3)

    with pytest.raises(ConfigError, match=r"state\[name\]"):
        plan_restoration(manifest, *fresh(), {"epoch": 3})


def test_an_optimizer_needs_a_checkpoint_that_has_one(trained, fresh):
    manifest, _ = saved(trained[0], None)

    with pytest.raises(CheckpointMismatchError, match=r"without an optimizer\."):
        plan_restoration(manifest, *fresh(), {})


def test_an_optimizer_that_was_saved_as_an_extra_is_named(trained, fresh):
    model, optimizer = trained
    manifest, _ = saved(model, None, optimzer=optimizer, epoch=3)

    with pytest.raises(CheckpointMismatchError, match=r"(?s)as an extra: 'optimzer'\..*optimzer=optimizer"):
        plan_restoration(manifest, *fresh(), {})
