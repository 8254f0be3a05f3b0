"""DCP saves into our format and loads from it, and its errors come out as ours."""

from __future__ import annotations

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from production_ml.core.errors import (
    CheckpointError,
    CheckpointWriteError,
    ConfigError,
    DamagedCheckpointError,
    InputFileError,
)
from production_ml.fault_tolerance import CheckpointManager
from production_ml.fault_tolerance.checkpoint_format import CheckpointDirectory, verify_checkpoint
from production_ml.fault_tolerance.interchange.dcp_storage import (
    VerifiedStorageReader,
    VerifiedStorageWriter,
    own_errors,
)

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable:UserWarning")


@pytest.fixture
def root(tmp_path):
    return tmp_path / "checkpoints"


def test_what_dcp_saved_comes_back_and_is_a_verified_checkpoint(root):
    state = {
        "w": torch.arange(6.0).reshape(2, 3).t(),
        "e": 3,
        "pair": (torch.ones(2), "a"),
        "l": [{"x": torch.ones(1)}],
    }
    dcp.save({"model": state}, storage_writer=VerifiedStorageWriter(root, 5, metrics={"loss": 2}))

    found = {"model": {"w": torch.zeros(3, 2), "e": 0, "pair": None, "l": [{"x": torch.zeros(1)}]}}
    dcp.load(found, storage_reader=VerifiedStorageReader(root))

    assert torch.equal(found["model"]["w"], state["w"])
    assert found["model"]["e"] == 3
    assert torch.equal(found["model"]["pair"][0], torch.ones(2))
    assert torch.equal(found["model"]["l"][0]["x"], torch.ones(1))
    directory = CheckpointDirectory(root)
    assert list(verify_checkpoint(directory, 5)) == []
    assert directory.manifest(5).metrics == {"loss": 2.0}
    assert not list(directory.committed(5).glob("*.metadata"))


@pytest.mark.parametrize("is_flat", [True, False])
def test_the_checkpoint_manager_loads_a_model_that_dcp_saved(root, training, fresh, is_flat):
    state = training[0].state_dict()
    dcp.save(state if is_flat else {"model": state}, storage_writer=VerifiedStorageWriter(root, 5))

    model, _ = fresh()
    assert CheckpointManager(root).load_latest(model)["step"] == 5
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), training[0].parameters(), strict=True))


def test_dcp_loads_what_the_checkpoint_manager_saved(saved, training, fresh):
    model, optimizer = fresh()
    state = {
        "model": model.state_dict(),
        "optimizer": get_optimizer_state_dict(model, optimizer),
        "epoch": 0,
        "pair": 0,
    }

    dcp.load(state, storage_reader=VerifiedStorageReader(saved.path, 300))

    set_optimizer_state_dict(model, optimizer, state["optimizer"])
    assert (state["epoch"], state["pair"][1]) == (3, "a")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), training[0].parameters(), strict=True))
    for mine, theirs in zip(model.parameters(), training[0].parameters(), strict=True):
        assert torch.equal(optimizer.state[mine]["exp_avg"], training[1].state[theirs]["exp_avg"])


def test_a_flipped_byte_is_damage_and_no_tensor_is_touched(root, flip):
    dcp.save({"a": torch.ones(3), "b": torch.ones(3)}, storage_writer=VerifiedStorageWriter(root, 5))
    flip(CheckpointDirectory(root))
    state = {"a": torch.zeros(3), "b": torch.zeros(3)}

    with pytest.raises(DamagedCheckpointError, match="does not match its hash") as raised, own_errors():
        dcp.load(state, storage_reader=VerifiedStorageReader(root))

    assert raised.value.tensor in ("a", "b")
    assert not any(tensor.any() for tensor in state.values())


def test_what_would_have_to_be_pickled_is_refused_by_name_and_nothing_is_left(root, listing):
    with pytest.raises(CheckpointWriteError, match=r"deep\.odd is a slice"), own_errors():
        dcp.save({"w": torch.ones(1), "deep": {"odd": slice(3)}}, storage_writer=VerifiedStorageWriter(root, 5))

    assert listing(root) == []


def test_a_checkpoint_id_may_name_the_step(root):
    dcp.save({"w": torch.ones(1)}, checkpoint_id=root / "step-00000007", storage_writer=VerifiedStorageWriter(root))
    dcp.save({"w": torch.ones(1)}, checkpoint_id="8", storage_writer=VerifiedStorageWriter(root))

    assert CheckpointDirectory(root).steps() == [7, 8]
    dcp.load({"w": torch.zeros(1)}, checkpoint_id="7", storage_reader=VerifiedStorageReader(root))
    with pytest.raises(ConfigError, match="names no step"), own_errors():
        dcp.save({"w": torch.ones(1)}, checkpoint_id="latest", storage_writer=VerifiedStorageWriter(root))


def test_what_is_missing_is_said(root, tmp_path):
    with pytest.raises(ConfigError, match="step = None: is missing"), own_errors():
        dcp.save({"w": torch.ones(1)}, storage_writer=VerifiedStorageWriter(root))
    with pytest.raises(InputFileError, match="holds no checkpoints"), own_errors():
        dcp.load({"w": torch.zeros(1)}, storage_reader=VerifiedStorageReader(tmp_path))
    dcp.save({"w": torch.ones(1)}, storage_writer=VerifiedStorageWriter(root, 1))
    with pytest.raises(CheckpointError, match="Missing key in checkpoint state_dict: v"), own_errors():
        dcp.load({"v": torch.zeros(1)}, storage_reader=VerifiedStorageReader(root))


def test_a_damaged_manifest_is_damage(saved):
    (saved.committed(300) / "manifest.json").write_text("{}")

    with pytest.raises(DamagedCheckpointError, match="its head is damaged"), own_errors():
        dcp.load({"epoch": 0}, storage_reader=VerifiedStorageReader(saved.path))


@pytest.mark.parametrize("step", [-1, True, 1.5, "3"])
def test_a_step_is_a_whole_number(root, step):
    with pytest.raises(ConfigError, match="must be a whole number"):
        VerifiedStorageWriter(root, step)


def test_cached_plans_of_an_earlier_save_do_not_lead_astray(root):
    for step in (1, 2, 3):
        planner = dcp.DefaultSavePlanner(enable_plan_caching=True)
        writer = VerifiedStorageWriter(root, step)
        dcp.save({"w": torch.full((2,), float(step))}, storage_writer=writer, planner=planner)

    state = {"w": torch.zeros(2)}
    dcp.load(state, storage_reader=VerifiedStorageReader(root, 2))
    assert state["w"].tolist() == [2.0, 2.0]


@pytest.mark.filterwarnings("error:Converting a tensor:UserWarning")
def test_a_loss_that_still_has_its_graph_is_a_metric(root):
    loss = torch.ones(1, requires_grad=True).sum()

    with own_errors():
        dcp.save({"w": torch.ones(1)}, storage_writer=VerifiedStorageWriter(root, 5, metrics={"loss": loss}))

    assert CheckpointDirectory(root).manifest(5).metrics == {"loss": 1.0}


def test_a_metric_that_is_no_number_is_refused_by_its_name(root):
    with pytest.raises(ConfigError, match="loss"):
        VerifiedStorageWriter(root, 5, metrics={"loss": "low"})
