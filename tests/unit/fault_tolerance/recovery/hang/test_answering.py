"""A worker that beats and answers without a line of its script changed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from production_ml.fault_tolerance.pulse import Phase, Pulse
from production_ml.fault_tolerance.recovery.hang.answering import AnswerFiles

TWO_STEPS = """
from production_ml.fault_tolerance import CheckpointManager
import torch
weight = torch.ones(1, requires_grad=True)
for optimizer in (torch.optim.SGD([weight], lr=0.1), torch.optim.AdamW([weight], lr=0.1)):
    weight.sum().backward()
    optimizer.step()
"""
A_CHILD = """
import subprocess, sys
subprocess.run([sys.executable, "-c", '''{}'''], check=True)
"""
WITHOUT_TORCH = """
import sys
import production_ml.fault_tolerance
assert "torch" not in sys.modules
"""


def run(script: str, pulse: Path, owner: int) -> None:
    variables = {"PRODUCTION_ML_PULSE": str(pulse), "PRODUCTION_ML_OWNER_PID": str(owner)}
    subprocess.run([sys.executable, "-c", script], env={**os.environ, **variables}, check=True)


def test_each_step_of_any_optimizer_beats(tmp_path):
    run(TWO_STEPS, tmp_path / "0.pulse", os.getpid())

    beat = Pulse(tmp_path / "0.pulse").read()
    assert (beat.steps, beat.phase) == (2, Phase.TRAINING)


def test_what_a_worker_starts_does_not_beat_for_it(tmp_path):
    run(A_CHILD.format(TWO_STEPS), tmp_path / "0.pulse", os.getpid())

    assert not (tmp_path / "0.pulse").exists()


def test_a_worker_answers_before_it_has_torch(tmp_path):
    run(WITHOUT_TORCH, tmp_path / "0.pulse", os.getpid())

    assert Pulse(tmp_path / "0.pulse").read().phase is Phase.STARTING
    assert AnswerFiles(tmp_path / "0.pulse").stacks.read_text().startswith("main thread 0x")
