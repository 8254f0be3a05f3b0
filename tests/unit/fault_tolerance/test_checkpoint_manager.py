"""What a training loop may rely on: every bit comes back, nothing tears, and what goes wrong is told."""

from __future__ import annotations

import copy
import errno
import gc
import json
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

from production_ml.core.errors import CheckpointMismatchError, CheckpointWriteError
from production_ml.fault_tolerance import CheckpointManager
from production_ml.fault_tolerance.checkpoint_format.save_lock import SaveLock
from production_ml.fault_tolerance.checkpoint_format.tensor_types import DTYPE_NAMES, as_bytes
from production_ml.fault_tolerance.retention import KeepEvery


def names_in(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


def committed(root: Path) -> list[int]:
    return sorted(int(name.removeprefix("step-")) for name in names_in(root) if name.startswith("step-"))


def flip_last_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def shard_of(root: Path, step: int) -> Path:
    return root / f"step-{step:08d}" / "rank-00000.safetensors"


def save_steps(root: Path, model, optimizer, *steps: int, **options) -> None:
    with CheckpointManager(root, **options) as manager:
        for step in steps:
            manager.save(model=model, optimizer=optimizer, step=step, metrics={"loss": float(step)})


def events(caplog, name: str) -> list[dict[str, object]]:
    return [record.fields for record in caplog.records if getattr(record, "event", "") == name]


def test_the_quick_start_runs_as_it_is_written(root, trained, fresh):
    model, optimizer = trained
    loss, acc, step = torch.tensor(0.25), torch.tensor(0.9), 7

    ckpt_manager = CheckpointManager(checkpoint_dir=root, keep_last_n=3, save_best=True)
    ckpt_manager.save(model=model, optimizer=optimizer, step=step, metrics={"loss": loss, "accuracy": acc})
    ckpt_manager.wait()
    model, optimizer = fresh(1)
    state = ckpt_manager.load_latest(model, optimizer)
    start_step = state["step"]
    ckpt_manager.close()

    assert start_step == 7
    assert state["metrics"] == {"loss": 0.25, "accuracy": pytest.approx(0.9)}
    for one, other in zip(model.state_dict().values(), trained[0].state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_a_first_start_resumes_at_step_0_and_touches_nothing(root, fresh):
    model, optimizer = fresh()
    before = copy.deepcopy(model.state_dict())

    state = CheckpointManager(root).load_latest(model, optimizer)

    assert state == {"step": 0, "metrics": {}}
    assert state.damaged == []
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_resumed_training_goes_on_bit_for_bit(root, trained, fresh, step_once):
    model, optimizer = trained
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    step_once(model, optimizer)
    scheduler.step()
    save_steps(root, model, optimizer, 1)
    with CheckpointManager(root) as manager:
        manager.save(model=model, optimizer=optimizer, step=2, scheduler=scheduler, rng=torch.get_rng_state(), epoch=3)
        losses = [step_once(model, optimizer) for _ in range(2)]

        resumed, resumed_optimizer = fresh(1)
        resumed_scheduler = torch.optim.lr_scheduler.StepLR(resumed_optimizer, step_size=1, gamma=0.5)
        state = manager.load_latest(resumed, resumed_optimizer, scheduler=resumed_scheduler)
        torch.set_rng_state(state["rng"])
        again = [step_once(resumed, resumed_optimizer) for _ in range(2)]

    assert (state["step"], state["epoch"]) == (2, 3)
    assert losses == again
    assert resumed_scheduler.last_epoch == 1
    assert resumed_optimizer.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"] == 0.005


def test_every_kind_of_tensor_comes_back_bit_for_bit(root, fresh):
    tensors = {}
    for dtype in DTYPE_NAMES:
        data = torch.arange(24 * dtype.itemsize, dtype=torch.uint8).view(dtype).reshape(4, 6)
        if dtype is torch.bool:
            data = torch.arange(24).reshape(4, 6) % 3 == 0
        tensors[str(dtype)] = [data, data[1, 2], data[:0], data.t()]
    model, _ = fresh()

    with CheckpointManager(root) as manager:
        manager.save(model=model, step=1, tensors=tensors)
        found = manager.load_latest(model)["tensors"]

    for name, originals in tensors.items():
        for original, copied in zip(originals, found[name], strict=True):
            assert (copied.dtype, copied.shape) == (original.dtype, original.shape)
            assert bytes(as_bytes(copied)) == bytes(as_bytes(original.contiguous()))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5000, 8)
        self.head = nn.Linear(8, 5000, bias=False)
        self.head.weight = self.embedding.weight


def test_tied_weights_are_stored_once_and_stay_tied(root):
    source, target = Tied(), Tied()

    with CheckpointManager(root) as manager:
        manager.save(model=source, optimizer=torch.optim.SGD(source.parameters()), step=1)
        manager.load_latest(target, torch.optim.SGD(target.parameters()))

    assert target.head.weight is target.embedding.weight
    assert torch.equal(target.head.weight, source.head.weight)
    assert shard_of(root, 1).stat().st_size < 2 * source.head.weight.nbytes


def test_values_are_those_at_the_time_of_save_though_training_goes_on_at_once(root):
    model = nn.Linear(2000, 1000)
    with CheckpointManager(root, keep_last_n=20, save_best=False) as manager:
        for step in range(8):
            with torch.no_grad():
                model.weight.fill_(step)
            manager.save(model=model, step=step)
            with torch.no_grad():
                model.weight.fill_(-1)
        manager.wait()

        for step in reversed(range(8)):
            assert manager.load_latest(model)["step"] == step
            assert (model.weight == step).all()
            shard_of(root, step).unlink()


def test_the_newest_and_the_best_are_kept(root, trained):
    with CheckpointManager(root, keep_last_n=2, best_metric="accuracy", best_mode="max") as manager:
        for step, accuracy in enumerate([0.1, 0.9, 0.5, float("nan"), 0.6, 0.7]):
            manager.save(model=trained[0], step=step, metrics={"accuracy": accuracy})

    assert committed(root) == [1, 4, 5]


def test_without_save_best_only_the_newest_are_kept(root, trained):
    save_steps(root, *trained, 1, 2, 3, 4, keep_last_n=2, save_best=False)

    assert committed(root) == [3, 4]


def test_what_a_further_policy_wants_is_kept_too(root, trained):
    save_steps(root, *trained, 1, 2, 3, 4, 5, keep_last_n=1, save_best=False, keep=[KeepEvery(n=2)])

    assert committed(root) == [2, 4, 5]


def test_steps_that_are_due_are_saved_and_a_restart_goes_on_counting_from_the_one_it_resumed(root, trained, fresh):
    def train(manager: CheckpointManager, steps: range) -> list[int]:
        return [step for step in steps if manager.save_if_due(model=trained[0], optimizer=trained[1], step=step)]

    with CheckpointManager(root, keep_last_n=9, save_best=False, save_every=3) as manager:
        assert train(manager, range(1, 8)) == [3, 6]

    with CheckpointManager(root, keep_last_n=9, save_best=False, save_every=3) as manager:
        assert manager.load_latest(*fresh())["step"] == 6
        assert train(manager, range(7, 13)) == [9, 12]
    assert committed(root) == [3, 6, 9, 12]


def test_a_file_url_is_the_directory_that_it_names(root, trained, fresh):
    with CheckpointManager(f"file://{root}") as manager:
        manager.save(model=trained[0], optimizer=trained[1], step=7)

    assert CheckpointManager(root).load_latest(*fresh(1))["step"] == 7


@pytest.mark.parametrize("verify", ["full", "sampled", "off"])
def test_a_shard_that_is_cut_off_is_never_loaded_however_little_is_compared(root, trained, fresh, verify):
    save_steps(root, *trained, 1, 2)
    shard_of(root, 2).write_bytes(shard_of(root, 2).read_bytes()[:-1])

    assert CheckpointManager(root, verify=verify).load_latest(*fresh(1))["step"] == 1


def test_who_turns_verification_off_gets_what_the_disk_gives(root, trained, fresh):
    save_steps(root, *trained, 1, 2)
    flip_last_bit(shard_of(root, 2))

    assert CheckpointManager(root, verify="off").load_latest(*fresh(1))["step"] == 2


def test_a_missing_best_metric_is_told_once_and_nothing_is_kept_as_best(root, trained, caplog):
    with CheckpointManager(root, keep_last_n=1) as manager:
        for step in range(3):
            manager.save(model=trained[0], step=step, metrics={"accuracy": 0.5})

    assert committed(root) == [2]
    assert [record.levelname for record in caplog.records if "no 'loss'" in record.message] == ["WARNING"]


def test_a_flipped_bit_is_never_loaded(root, trained, fresh, caplog):
    save_steps(root, *trained, 100, 200)
    flip_last_bit(shard_of(root, 200))

    state = CheckpointManager(root).load_latest(*fresh(1))

    assert state["step"] == 100
    [damage] = state.damaged
    assert (damage.step, damage.file) == (200, str(shard_of(root, 200)))
    [event] = events(caplog, "checkpoint_damaged")
    assert event["tensor"] == damage.tensor
    [warning] = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert "Resuming from step 100, the newest good checkpoint: 100 steps will be redone." in warning
    assert f"production-ml checkpoint verify {root}" in warning


def test_a_damaged_checkpoint_is_kept_with_the_reason(root, trained, fresh, caplog):
    save_steps(root, *trained, 1, 2)
    flip_last_bit(shard_of(root, 2))
    CheckpointManager(root).load_latest(*fresh())

    kept = Path(events(caplog, "checkpoint_damaged")[0]["quarantined_to"])
    reason = json.loads((kept / "reason.json").read_text())

    assert committed(root) == [1]
    assert (kept / "manifest.json").exists()
    assert reason["step"] == 2
    assert "does not match its hash" in reason["damage"][0]["problem"]


def test_where_all_are_damaged_training_starts_anew_and_nothing_is_deleted(root, trained, fresh, caplog):
    save_steps(root, *trained, 1, 2, 3)
    for step in (1, 2, 3):
        flip_last_bit(shard_of(root, step))
    model, optimizer = fresh(1)
    before = copy.deepcopy(model.state_dict())

    state = CheckpointManager(root).load_latest(model, optimizer)

    assert state["step"] == 0
    assert [damage.step for damage in state.damaged] == [3, 2, 1]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert len(names_in(root / "quarantine")) == 3
    assert sum("NO GOOD CHECKPOINT IS LEFT" in record.message for record in caplog.records) == 1


def test_a_checkpoint_that_does_not_fit_names_both_shapes_and_changes_nothing(root, trained):
    save_steps(root, *trained, 1)
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 9))
    optimizer = torch.optim.AdamW(model.parameters())
    before = copy.deepcopy(model.state_dict())

    with pytest.raises(CheckpointMismatchError, match=r"'2\.weight' has the shape \[9, 5\], but \[2, 5\]"):
        CheckpointManager(root).load_latest(model, optimizer)

    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not optimizer.state
    assert committed(root) == [1]


def test_a_background_failure_is_raised_by_the_next_save_and_a_later_one_works(root, trained, caplog, file_size_limit):
    model, optimizer = trained
    manager = CheckpointManager(root)
    manager.save(model=model, optimizer=optimizer, step=1)
    manager.wait()

    with file_size_limit(100):
        manager.save(model=model, optimizer=optimizer, step=2)
        with pytest.raises(CheckpointWriteError, match="step 2 could not be written"):
            manager.save(model=model, optimizer=optimizer, step=3)
    assert manager.load_latest(model, optimizer)["step"] == 1
    manager.save(model=model, optimizer=optimizer, step=4)
    manager.close()

    assert [event["step"] for event in events(caplog, "checkpoint_save_failed")] == [2]
    assert committed(root) == [1, 4]


@pytest.mark.parametrize("call", ["wait", "close"])
def test_a_background_failure_is_raised_once_by(root, trained, call, file_size_limit):
    manager = CheckpointManager(root)
    manager.save(model=trained[0], step=1)
    manager.wait()
    with file_size_limit(100):
        manager.save(model=trained[0], step=2)
        with pytest.raises(CheckpointWriteError, match="File too large") as raised:
            getattr(manager, call)()
    assert raised.value.errno == errno.EFBIG

    manager.wait()
    manager.save(model=trained[0], step=3)
    manager.close()
    assert committed(root) == [1, 3]


def test_without_asynchronous_the_checkpoint_is_there_when_save_returns(root, trained, caplog, file_size_limit):
    manager = CheckpointManager(root, asynchronous=False)

    manager.save(model=trained[0], step=1)
    assert committed(root) == [1]
    [saved] = events(caplog, "checkpoint_saved")
    assert saved["stall_seconds"] == saved["duration_seconds"]

    with file_size_limit(100), pytest.raises(CheckpointWriteError):
        manager.save(model=trained[0], step=2)
    manager.close()


def test_a_script_that_fails_shows_its_own_error_and_keeps_the_save_before_it(root, trained):
    def fail_after_a_save() -> None:
        with CheckpointManager(root) as manager:
            manager.save(model=trained[0], step=1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_after_a_save()

    assert committed(root) == [1]


def test_leftovers_of_a_killed_save_are_removed_by_the_next_save_and_not_by_a_reader(root, trained, fresh):
    save_steps(root, *trained, 1)
    leftover = root / ".incomplete-step-00000002-dead"
    leftover.mkdir()
    SaveLock(leftover).release()

    assert CheckpointManager(root).load_latest(*fresh())["step"] == 1
    assert leftover.exists()  # a mere reader has no say in what is dead

    save_steps(root, *trained, 2)
    assert names_in(root) == ["step-00000001", "step-00000002"]


def test_loading_puts_a_checkpoint_back_whose_replacement_was_interrupted(root, trained, fresh):
    save_steps(root, *trained, 1)
    (root / "step-00000001").rename(root / ".replaced-step-00000001-dead")

    assert CheckpointManager(root).load_latest(*fresh())["step"] == 1
    assert names_in(root) == ["step-00000001"]


@pytest.mark.parametrize("path", ["file", "file/below", "/proc/none/checkpoints"])
def test_a_directory_that_cannot_be_is_refused_before_training(tmp_path, path):
    (tmp_path / "file").touch()

    with pytest.raises(CheckpointWriteError, match="cannot be a checkpoint directory"):
        CheckpointManager(tmp_path / path)


def test_sparse_tensors_are_refused_by_name_and_training_may_go_on(root, trained):
    with CheckpointManager(root) as manager:
        with pytest.raises(CheckpointWriteError, match=r"'extra\.mask'"):
            manager.save(model=trained[0], step=1, mask=torch.eye(3).to_sparse())
        manager.save(model=trained[0], step=2)

    assert committed(root) == [2]


def test_closing_twice_is_no_error_and_the_manager_can_be_used_again(root, trained):
    manager = CheckpointManager(root)
    manager.save(model=trained[0], step=1)
    manager.close()
    manager.close()
    manager.save(model=trained[0], step=2)
    manager.close()

    assert committed(root) == [1, 2]


def test_there_is_no_pickle_in_a_checkpoint(root, trained):
    save_steps(root, *trained, 1)

    suffixes = {path.suffix for path in (root / "step-00000001").iterdir()}
    assert suffixes == {".json", ".safetensors"}


def test_state_that_training_has_let_go_of_does_not_stay_in_memory_for_a_save_that_is_over(root, trained):
    model, optimizer = trained
    with CheckpointManager(root, save_best=False) as manager:
        manager.save(model=model, optimizer=optimizer, step=1)
        manager.wait()
        tensors = [value for state in optimizer.state.values() for value in state.values()]
        held = [weakref.ref(value) for value in tensors if isinstance(value, torch.Tensor)]
        del tensors

        manager.load_latest(model, optimizer)
        gc.collect()

        assert held
        assert [reference() for reference in held] == [None] * len(held)
