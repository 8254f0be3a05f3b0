"""The checkpoint commands as a person meets them: as processes, with exit codes, interrupted, on narrow terminals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from production_ml.core.errors import ExitCode
from production_ml.fault_tolerance.checkpoint_format.directory import CheckpointDirectory
from production_ml.fault_tolerance.interchange.builder import CheckpointBuilder

PROGRAM = [sys.executable, "-c", "from production_ml.cli.main import main; main()", "checkpoint"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Step 1, of 64 MiB in 8 shards."""
    directory = CheckpointDirectory(tmp_path / "checkpoints")
    with CheckpointBuilder(directory, 1, shard_bytes=8 << 20) as builder:
        for number in range(8):
            builder.add(f"model.layers.{number}.a_rather_long_name.weight", torch.full((2 << 20,), float(number)))
        names = {name: {"$tensor": f"model.{name}"} for name in ("layers.0.a_rather_long_name.weight",)}
        builder.commit({"model": names, "optimizer": None, "extra": {}}, {"loss": 0.5})
    return directory.path


def run(*arguments: object, columns: int = 80) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": str(columns)}
    command = [*PROGRAM, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def names_in(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def test_each_failure_has_its_exit_code_and_a_message_without_a_traceback(root, tmp_path):
    shard = root / "step-00000001" / "rank-00003.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    (tmp_path / "odd.pt").write_bytes(b"odd")

    attempts = {
        ("verify", root): ExitCode.DAMAGED,
        ("verify", root, 9): ExitCode.BAD_INPUT,
        ("export", root, tmp_path / "whole.pt", "--to", "torch"): ExitCode.DAMAGED,
        ("export", root, "/proc/nowhere/model.safetensors"): ExitCode.BAD_INPUT,
        ("import", tmp_path / "odd.pt", tmp_path / "new", "--step", 1): ExitCode.BAD_INPUT,
        ("diff", root, tmp_path / "absent"): ExitCode.BAD_INPUT,
        ("prune", root): ExitCode.BAD_INPUT,
    }
    done = {arguments: run(*arguments) for arguments in attempts}

    assert {arguments: result.returncode for arguments, result in done.items()} == attempts
    for result in done.values():
        assert "Traceback" not in result.stdout + result.stderr
    assert f"{shard}: tensor 'model.layers.3.a_rather_long_name.weight'" in done["verify", root].stdout
    assert names_in(tmp_path) == ["checkpoints", "odd.pt"]


@pytest.mark.parametrize("to", ["safetensors", "torch", "dcp"])
def test_ctrl_c_in_the_midst_of_an_export_leaves_nothing(root, tmp_path, to):
    target = tmp_path / "out"
    command = [*PROGRAM, "export", str(root), str(target), "--to", to]
    if to == "safetensors":
        command.append("--with-optimizer")
    # The first sign of life of the output, in whichever form: then the export is in its midst.
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as export:
        while export.poll() is None and not list(tmp_path.glob(".out.*")):
            os.sched_yield()
        export.send_signal(signal.SIGINT)
        _, told = export.communicate(timeout=60)

    assert names_in(tmp_path) in (["checkpoints"], ["checkpoints", "out"])
    assert export.returncode in (ExitCode.INTERRUPTED, ExitCode.OK)
    assert "Traceback" not in told
    if export.returncode == ExitCode.INTERRUPTED:
        assert not target.exists()


def test_a_narrow_terminal_breaks_no_line_beyond_its_width(root):
    for arguments in (("list", root), ("show", root), ("prune", root, "--keep-last", 1, "--dry-run")):
        text = run(*arguments, columns=60).stdout
        table = [line for line in text.splitlines() if line[:1] in "┏┃┡│└"]
        assert table
        assert max(map(len, table)) <= 60
