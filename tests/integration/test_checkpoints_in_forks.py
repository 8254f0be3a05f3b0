"""A fork of a training saves for itself, and leaves what its parent saves alone."""

from __future__ import annotations

import subprocess
import sys

PRELUDE = """
import os, shutil, sys, traceback
from pathlib import Path
import torch
from torch import nn
from production_ml.fault_tolerance import CheckpointManager

torch.set_num_threads(1)  # the threads of a pool are not in a fork
root = Path(sys.argv[1])
model = nn.Linear(300, 300)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

def fill(value):
    with torch.no_grad():
        model.weight.fill_(value)

def in_child(work):
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0

def assert_holds(name, values):
    for step, value in sorted(values.items(), reverse=True):
        assert CheckpointManager(root / name).load_latest(model)["step"] == step
        assert (model.weight == value).all(), (name, step, model.weight)
        shutil.rmtree(root / name / f"step-{step:08d}")
"""


def test_a_fork_saves_and_ends_without_touching_the_parents_image_writer_or_save(tmp_path):
    script = (
        PRELUDE
        + """
manager = CheckpointManager(root / "parent", keep_last_n=9)

def save_elsewhere():
    fill(7.0)
    optimizer.step()
    with CheckpointManager(root / "child") as own:
        own.save(model=model, optimizer=optimizer, step=7)

def save_with_its_copy_of_the_manager():
    fill(8.0)
    manager.save(model=model, optimizer=optimizer, step=8)
    manager.close()

children = [save_elsewhere, save_with_its_copy_of_the_manager, manager.close, manager.wait,
            lambda: manager.load_latest(nn.Linear(300, 300))]
writers = set()
for step, child in enumerate(children, start=1):
    fill(step)
    manager.save(model=model, optimizer=optimizer, step=step)
    in_child(child)
    manager.wait()
    writers.add(manager._saver._writer._process.pid)
manager.close()

assert len(writers) == 1, writers
assert_holds("parent", {1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0, 5: 5.0, 8: 8.0})
assert_holds("child", {7: 7.0})
"""
    )

    command = [sys.executable, "-W", "always::ResourceWarning", "-c", script, str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)

    assert ran.returncode == 0, ran.stderr
    assert "ResourceWarning" not in ran.stderr
