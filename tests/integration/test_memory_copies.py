"""A manager loads the newest step wherever it is, in memory or on disk, and damage in memory is passed over."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from production_ml.core.errors import CheckpointMismatchError, ConfigError
from production_ml.core.structured_logging import Event, subscribe, unsubscribe
from production_ml.fault_tolerance import CheckpointManager
from production_ml.fault_tolerance.memory_copies.meeting_place import MeetingPlace
from production_ml.fault_tolerance.memory_copies.visit import borrow, what_keepers_hold

SCRIPT = Path(__file__).parents[1] / "faults" / "memory_copies_script.py"
SLEEP = [sys.executable, "-c", "import signal; signal.pause()"]
LONG = 100.0


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where keepers meet, for this test alone."""
    path = tmp_path / "runtime"
    path.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(path))
    return path


@pytest.fixture
def directory(tmp_path: Path, runtime: Path) -> Path:
    return tmp_path / "checkpoints"


def build(seed: int, width: int = 40) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Linear(30, width)
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    optimizer.zero_grad()
    model(torch.ones(2, 30)).square().mean().backward()
    optimizer.step()
    return model.weight.detach().clone()


@pytest.fixture
def trained(directory: Path) -> Iterator[Callable[..., dict[int, torch.Tensor]]]:
    """Train as the words say, step by step, and go on living; gives the weights of each step."""
    with contextlib.ExitStack() as stack:

        def train(*saves: str, memory_copies: int = 2) -> dict[int, torch.Tensor]:
            manager = stack.enter_context(CheckpointManager(directory, memory_copies=memory_copies))
            model, optimizer = build(0)
            weights = {}
            for step, where in enumerate(saves, start=1):
                weights[step] = train_step(model, optimizer)
                save = manager.save if where == "disk" else manager.save_to_memory
                save(model=model, optimizer=optimizer, step=step, metrics={"loss": 1.0 / step}, note=f"step {step}")
            manager.wait()
            return weights

        yield train


@pytest.fixture
def loaded(directory: Path) -> Iterator[Callable[[], tuple[dict, str, torch.Tensor]]]:
    """Load as a new attempt does; gives the state, the source, and the weights."""
    events = []
    note = events.append
    subscribe(note)

    def load() -> tuple[dict, str, torch.Tensor]:
        model, optimizer = build(1)
        with CheckpointManager(directory, memory_copies=2) as manager:
            state = manager.load_latest(model, optimizer)
        sources = [event.fields["source"] for event in events if event.name == "checkpoint_loaded"]
        return state, sources[-1] if sources else "nothing", model.weight.detach().clone()

    yield load
    unsubscribe(note)


def damage(directory: Path, step: int) -> None:
    """Flip a bit of the last tensor of the copy of a step."""
    for path, told in what_keepers_hold(MeetingPlace.of(str(directory))):
        for copy in told["copies"]:
            if copy["step"] == step:
                _, descriptor = borrow(path, copy["save_id"], copy["rank"])
                byte = os.pread(descriptor, 1, 8192)
                os.pwrite(descriptor, bytes([byte[0] ^ 1]), 8192)
                os.close(descriptor)


def test_a_step_that_is_in_memory_alone_is_loaded_bit_by_bit(trained, loaded):
    weights = trained("disk", "memory", "memory")

    state, source, found = loaded()

    assert (state["step"], state["metrics"], state["note"], source) == (3, {"loss": 1.0 / 3}, "step 3", "memory")
    assert torch.equal(found, weights[3])


def test_of_a_step_that_is_in_both_memory_is_read(trained, loaded):
    weights = trained("disk", "disk")

    state, source, found = loaded()

    assert (state["step"], source) == (2, "memory")
    assert torch.equal(found, weights[2])


def test_a_flipped_bit_in_memory_is_passed_over_for_the_next_best_copy(trained, loaded, directory):
    weights = trained("disk", "memory", "memory")
    damage(directory, 3)

    state, source, found = loaded()

    assert (state["step"], source) == (2, "memory")
    assert [(one.step, one.file) for one in state.damaged] == [(3, "memory:step-00000003/rank-00000.safetensors")]
    assert torch.equal(found, weights[2])


def test_damage_in_memory_leaves_the_same_step_on_disk_where_it_is(trained, loaded, directory):
    weights = trained("disk", "disk")
    damage(directory, 2)

    state, source, found = loaded()

    assert (state["step"], source, len(state.damaged)) == (2, "disk", 1)
    assert torch.equal(found, weights[2])
    assert not (directory / "quarantine").exists()


def test_a_damaged_copy_is_told_of_once(trained, loaded, directory):
    trained("disk", "memory")
    damage(directory, 2)

    first, second = loaded()[0], loaded()[0]

    assert (first["step"], len(first.damaged)) == (1, 1)
    assert (second["step"], len(second.damaged)) == (1, 0)


def test_where_nobody_keeps_anything_the_disk_is_read(trained, loaded):
    trained("disk", memory_copies=0)

    assert loaded()[1] == "disk"


def test_a_copy_that_does_not_fit_is_refused_and_nothing_is_changed(trained, directory):
    trained("memory")
    model, optimizer = build(1, width=41)
    before = model.weight.detach().clone()

    with CheckpointManager(directory, memory_copies=2) as manager, pytest.raises(CheckpointMismatchError):
        manager.load_latest(model, optimizer)

    assert torch.equal(model.weight, before)


def test_a_rollback_in_a_living_training_reads_its_own_copies(directory):
    model, optimizer = build(0)
    with CheckpointManager(directory, memory_copies=1) as manager:
        for step in (1, 2, 3):
            good = train_step(model, optimizer)
            manager.save_to_memory(model=model, optimizer=optimizer, step=step)
        train_step(model, optimizer)

        assert manager.load_latest(model, optimizer)["step"] == 3
        assert torch.equal(model.weight, good)

        manager.save_to_memory(model=model, optimizer=optimizer, step=4)
        assert manager.load_latest(model, optimizer)["step"] == 4


def test_without_memory_copies_there_is_nowhere_to_save_to(directory):
    model, optimizer = build(0)

    with CheckpointManager(directory) as manager, pytest.raises(ConfigError, match="memory_copies = 0"):
        manager.save_to_memory(model=model, optimizer=optimizer, step=1)


@pytest.mark.parametrize("wrong", [-1, 1.5, True, "2"])
def test_a_number_of_copies_that_is_none_is_refused(directory, wrong):
    with pytest.raises(ConfigError, match="memory_copies"):
        CheckpointManager(directory, memory_copies=wrong)


def test_where_others_could_look_nothing_is_kept_which_is_told_once_and_costs_no_checkpoint_on_disk(
    directory, runtime, caplog
):
    (runtime / "production-ml").mkdir()
    (runtime / "production-ml").chmod(0o777)
    model, optimizer = build(0)
    with CheckpointManager(directory, memory_copies=1) as manager:
        for step in (2, 4):
            manager.save_to_memory(model=model, optimizer=optimizer, step=step - 1)
            manager.save(model=model, optimizer=optimizer, step=step)
            manager.save_to_memory(model=model, optimizer=optimizer, step=step)
            manager.wait()

    assert all((directory / f"step-{step:08d}" / "manifest.json").exists() for step in (2, 4))
    assert caplog.text.count("not a directory of this user alone") == 1


def test_a_training_leaves_no_keeper_and_no_file_behind(trained, directory, runtime):
    model, optimizer = build(0)
    with CheckpointManager(directory, memory_copies=1) as manager:
        manager.save_to_memory(model=model, optimizer=optimizer, step=1)
        manager.wait()
        assert len(MeetingPlace.of(str(directory)).sockets()) == 1

    assert list((runtime / "production-ml").iterdir()) == []


@pytest.fixture
def attempt(tmp_path: Path, runtime: Path) -> Iterator[Callable[..., list[str]]]:
    """Run all ranks of an attempt under one owner; gives what each printed."""
    with contextlib.ExitStack() as stack:
        owner = stack.enter_context(subprocess.Popen(SLEEP))
        stack.callback(owner.kill)

        def run(world_size: int, *arguments: object, number: int) -> list[str]:
            shared = {
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(free_port()),
                "WORLD_SIZE": str(world_size),
                "LOCAL_WORLD_SIZE": str(world_size),
                "PRODUCTION_ML_OWNER_PID": str(owner.pid),
                "PRODUCTION_ML_ATTEMPT": str(number),
                "OMP_NUM_THREADS": "1",
            }
            processes = [
                subprocess.Popen(
                    [sys.executable, str(SCRIPT), *map(str, arguments)],
                    cwd=tmp_path,
                    env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
                for rank in range(world_size)
            ]
            printed = [process.communicate(timeout=LONG)[0] for process in processes]
            assert [process.returncode for process in processes] == [0] * world_size, printed
            return printed

        yield run


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_copies_of_one_world_size_load_into_another(attempt, before, after):
    first = attempt(before, 5, 0.0, number=0)

    second = attempt(after, 5, 0.0, number=1)

    assert "source memory" in second[0]
    assert "resumed 5 damaged 0" in second[0]
    assert second[0].split("weights ")[1].split()[0] == first[0].split("weights ")[1].split()[0]


@pytest.fixture
def saved_events() -> Iterator[list[tuple[str, int | None]]]:
    """What was saved where, in order."""
    seen: list[tuple[str, int | None]] = []

    def receive(event: Event) -> None:
        if event.name in ("checkpoint_kept", "checkpoint_saved"):
            seen.append((event.name, event.fields["step"]))

    subscribe(receive)
    yield seen
    unsubscribe(receive)


def test_a_schedule_may_save_to_memory_more_often_than_to_the_disk(directory, saved_events):
    model = nn.Linear(2, 2)
    with CheckpointManager(directory, save_every=4, save_best=False, memory_copies=1, memory_every=2) as manager:
        due = [manager.save_if_due(model=model, step=step) for step in range(1, 9)]

    assert due == [False, False, False, True, False, False, False, True]
    kept, saved = "checkpoint_kept", "checkpoint_saved"
    assert saved_events == [(kept, 2), (saved, 4), (kept, 6), (saved, 8)]


@pytest.mark.parametrize("memory_every", [0, True, 1.5])
def test_an_interval_that_is_no_number_of_steps_is_refused(tmp_path, memory_every):
    with pytest.raises(ConfigError, match="memory_every"):
        CheckpointManager(tmp_path, memory_copies=1, memory_every=memory_every)


def test_an_interval_without_copies_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="needs memory_copies"):
        CheckpointManager(tmp_path, memory_every=2)
