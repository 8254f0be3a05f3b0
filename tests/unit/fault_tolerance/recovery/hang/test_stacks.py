"""What a stack says of its thread."""

from __future__ import annotations

import faulthandler
import threading

import pytest

from production_ml.fault_tolerance.recovery.hang.stacks import (
    Activity,
    Frame,
    activity_of,
    parse_stacks,
    place_of,
)

TORCH = "/venv/lib/python3.11/site-packages/torch/"
FORWARD = Frame("/job/train.py", 12, "forward")
MAIN = Frame("/job/train.py", 99, "main")


def test_what_faulthandler_dumps_is_read_thread_by_thread(tmp_path):
    ready, done = threading.Event(), threading.Event()

    def wait_here() -> None:
        ready.set()
        done.wait()

    thread = threading.Thread(target=wait_here)
    thread.start()
    ready.wait()
    with (tmp_path / "dump").open("w") as dump:
        faulthandler.dump_traceback(dump, all_threads=True)
    done.set()
    thread.join()

    stacks = parse_stacks((tmp_path / "dump").read_text())

    assert "test_what_faulthandler_dumps" in place_of(stacks[threading.get_ident()])
    assert any(frame.function == "wait_here" for frame in stacks[thread.ident])


@pytest.mark.parametrize(
    ("innermost", "activity"),
    [
        ([Frame(TORCH + "distributed/distributed_c10d.py", 3000, "all_reduce")], Activity.COLLECTIVE),
        ([Frame(TORCH + "autograd/graph.py", 979, "_engine_run_backward")], Activity.BACKWARD),
        ([Frame(TORCH + "utils/data/dataloader.py", 1284, "_try_get_data")], Activity.DATA),
        ([Frame(TORCH + "serialization.py", 800, "save")], Activity.PAUSE),
        ([Frame(TORCH + "_inductor/compile_fx.py", 800, "compile_fx")], Activity.PAUSE),
        ([Frame("/job/train.py", 40, "validate_all")], Activity.PAUSE),
        ([Frame(TORCH + "utils/_contextlib.py", 120, "decorate_context")], Activity.PAUSE),
        ([Frame(TORCH + "distributed/checkpoint/filesystem.py", 100, "write_data")], Activity.PAUSE),
        ([FORWARD], Activity.WORK),
    ],
)
def test_the_innermost_calls_tell_what_a_rank_does(innermost, activity):
    assert activity_of((*innermost, MAIN)) is activity


def test_an_optimizer_that_runs_without_gradients_is_no_evaluation():
    step = Frame(TORCH + "optim/adamw.py", 240, "step")

    assert activity_of((step, Frame(TORCH + "utils/_contextlib.py", 120, "decorate_context"), MAIN)) is Activity.WORK


def test_own_code_that_a_collective_called_back_is_work():
    collective = Frame(TORCH + "distributed/fsdp/_fully_shard/_fsdp_state.py", 200, "_pre_forward")

    assert activity_of((FORWARD, collective, MAIN)) is Activity.WORK


def test_no_stack_is_no_activity():
    assert activity_of(()) is Activity.UNKNOWN


def test_a_place_is_the_users_own_line():
    call = Frame(TORCH + "distributed/distributed_c10d.py", 3000, "all_reduce")

    assert place_of((call, MAIN)) == "/job/train.py:99 in main (in distributed_c10d.py: all_reduce)"
    assert place_of((FORWARD, MAIN)) == "/job/train.py:12 in forward"
