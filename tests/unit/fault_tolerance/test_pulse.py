"""A pulse is read by others while its writer lives, hangs or is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from production_ml.fault_tolerance.pulse import PULSE_VARIABLE, Phase, Pulse, own_pulse

WRITER = """
import os, signal
from production_ml.fault_tolerance.pulse import Phase, own_pulse
pulse = own_pulse()
for _ in range(3):
    pulse.beat()
pulse.enter(Phase.PAUSED)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_new_pulse_says_that_nothing_was_done_yet(tmp_path):
    beat = Pulse(tmp_path / "pulse").read()

    assert (beat.steps, beat.phase, beat.step_seconds) == (0, Phase.STARTING, 0.0)


def test_each_beat_counts_a_step_and_says_when(tmp_path):
    pulse = Pulse(tmp_path / "pulse")

    pulse.beat()
    first = pulse.read()
    pulse.beat()
    second = pulse.read()

    assert (first.steps, second.steps) == (1, 2)
    assert 0.0 < first.step_seconds <= second.step_seconds
    assert second.phase is Phase.TRAINING


def test_a_killed_writers_last_words_are_read(tmp_path):
    path = tmp_path / "pulse"
    reader = Pulse(path)

    writer = subprocess.run([sys.executable, "-c", WRITER], env={**os.environ, PULSE_VARIABLE: str(path)}, check=False)

    assert writer.returncode == -signal.SIGKILL
    assert (reader.read().steps, reader.read().phase) == (3, Phase.PAUSED)
    assert reader.read().phase_seconds >= reader.read().step_seconds > 0.0


def test_without_a_launcher_there_is_no_pulse(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(PULSE_VARIABLE, raising=False)

    assert own_pulse() is None
