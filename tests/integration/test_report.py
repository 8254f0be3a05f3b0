"""`production-ml report` tells of runs that real monitors wrote, one of them really killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from production_ml.cli import report
from production_ml.core.errors import ExitCode, InputFileError, RunDirectoryError
from production_ml.testing.synthetic_run import write_recovered_run

TRAIN = """
import os, signal, sys
from production_ml.monitoring import TrainingMonitor

begin, end, ending = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
config = {"lr": 0.1, "wandb_api_key": "hunter2"}
with TrainingMonitor("shop", "exp-001", metrics_port=None, run_dir="run", run_id="r1", config=config) as monitor:
    for step in range(begin, end):
        monitor.log({"train/loss": 1.0 / (1 + step), "a<b>": 1.0}, step=step)
    if ending == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if ending == "raise":
        raise ValueError("the <data> is bad")
"""


def train(directory: Path, begin: int, end: int, ending: str, *, attempt: int = 0) -> int:
    environment = {**os.environ, "PRODUCTION_ML_ATTEMPT": str(attempt)}
    command = [sys.executable, "-c", TRAIN, str(begin), str(end), ending]
    return subprocess.run(command, cwd=directory, env=environment, check=False).returncode


@pytest.fixture
def invoke():
    app = typer.Typer()
    app.callback()(lambda: None)
    report.register(app)

    def call(*arguments: str):
        result = CliRunner().invoke(app, ["report", *arguments])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


def test_a_killed_script_that_was_started_again_is_told_as_a_recovery(tmp_path, invoke):
    assert train(tmp_path, 0, 20, "kill") == -signal.SIGKILL
    killed = json.loads(invoke(str(tmp_path / "run"), "--json").stdout)
    assert train(tmp_path, 10, 30, "end", attempt=1) == 0

    told = json.loads(invoke(str(tmp_path / "run"), "--json").stdout)
    printed = invoke(str(tmp_path / "run")).stdout.strip()

    assert (killed["outcome"], killed["steps"], killed["restarts"]) == ("cut short", 20, 0)
    assert (told["outcome"], told["steps"], told["restarts"], told["steps_redone"]) == ("finished", 30, 1, 10)
    assert told["recoveries"][0]["failure"]["signal"] is None
    assert told["recoveries"][0]["down_seconds"] > 0
    assert printed == str(tmp_path / "run" / "report.html")
    page = Path(printed).read_text()
    assert "<h4>a&lt;b&gt;</h4>" in page
    assert "hunter2" not in page


def test_a_script_that_never_closes_its_monitor_has_finished_all_the_same(tmp_path, invoke):
    script = TRAIN.replace("with TrainingMonitor(", "monitor = TrainingMonitor(").replace(" as monitor:", "\nif True:")
    subprocess.run([sys.executable, "-c", script, "0", "5", "end"], cwd=tmp_path, check=True)

    assert json.loads(invoke(str(tmp_path / "run"), "--json").stdout)["outcome"] == "finished"


def test_an_exception_is_shown_with_its_traceback(tmp_path, invoke):
    assert train(tmp_path, 0, 5, "raise") == 1

    invoke(str(tmp_path / "run"), "--output", str(tmp_path / "here.html"))

    page = (tmp_path / "here.html").read_text()
    assert "Failed: rank 0: ValueError: the &lt;data&gt; is bad." in page
    assert "<summary>Traceback</summary>" in page
    assert not (tmp_path / "run" / "report.html").exists()


def test_json_prints_the_figures_and_writes_no_file(tmp_path, invoke):
    write_recovered_run(tmp_path / "run")

    told = json.loads(invoke(str(tmp_path / "run"), "--json").stdout)

    assert told["recoveries"][0]["failure"]["signal"] == "SIGKILL"
    assert told["loss"]["not_finite"] == 1
    assert not (tmp_path / "run" / "report.html").exists()


def test_bad_input_is_a_clear_error_with_its_exit_code(tmp_path, invoke):
    with pytest.raises(InputFileError, match="holds no run") as no_run:
        invoke(str(tmp_path))
    write_recovered_run(tmp_path / "run", steps=30, killed_at=10, save_every=5)
    with pytest.raises(RunDirectoryError, match="cannot be written") as no_place:
        invoke(str(tmp_path / "run"), "-o", "/proc/report.html")

    assert no_run.value.exit_code == no_place.value.exit_code == ExitCode.BAD_INPUT
