"""Writing the report: where it goes, and what is said when it cannot be made."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from production_ml.core.errors import InputFileError, RunDirectoryError
from production_ml.monitoring.run_directory import process_start
from production_ml.report import write_report
from production_ml.report.run_report import owners_are_gone, summarize_run


def test_the_report_lies_in_the_run_directory_unless_told_otherwise(run, tmp_path):
    run.metrics(0, 0, {"loss": 1.0})

    assert write_report(run.run.path) == run.run.path / "report.html"
    assert write_report(run.run.path, tmp_path / "new" / "r.html") == tmp_path / "new" / "r.html"
    assert (tmp_path / "new" / "r.html").read_text().startswith("<!doctype html>")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["r.html"]


def test_a_directory_without_a_run_is_named(tmp_path):
    with pytest.raises(InputFileError, match="holds no run"):
        write_report(tmp_path)


def test_an_output_that_cannot_be_written_is_named_and_an_older_report_stays(run, tmp_path):
    run.metrics(0, 0, {"loss": 1.0})
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")

    with pytest.raises(RunDirectoryError, match="cannot be written") as caught:
        write_report(run.run.path, blocked / "report.html")

    assert "--output" in str(caught.value)
    assert blocked.read_text() == "not a directory"


def test_a_directory_in_the_reports_place_is_an_error_and_leaves_no_rubbish(run, tmp_path):
    (tmp_path / "taken").mkdir()

    with pytest.raises(RunDirectoryError, match="taken"):
        write_report(run.run.path, tmp_path / "taken")

    assert {path.name for path in tmp_path.iterdir()} == {"run", "taken"}


def test_without_plotly_the_pip_command_is_told_and_the_figures_still_work(run):
    run.metrics(0, 0, {"loss": 1.0})
    program = (
        "import sys; sys.modules['plotly'] = None\n"
        "from production_ml.core.errors import MissingDependencyError\n"
        "from production_ml.report.run_report import summarize_run, write_report\n"
        "print(summarize_run(sys.argv[1]).steps)\n"
        "try:\n    write_report(sys.argv[1])\n"
        "except MissingDependencyError as missing:\n    print(missing)\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", program, str(run.run.path)], capture_output=True, text=True, check=True
    )

    assert done.stdout.startswith("1\n")
    assert "pip install 'production-ml[report]'" in done.stdout
    assert not run.run.report.exists()


def test_the_processes_of_a_run_are_gone_when_this_host_knows_it(run, read):
    run.metrics(0, 0, {"loss": 1.0})
    (elsewhere,) = read().sources
    here = replace(elsewhere, node=socket.gethostname(), owner_pid=os.getpid(), owner_start=process_start(os.getpid()))

    assert not owners_are_gone([])
    assert not owners_are_gone([elsewhere])
    assert not owners_are_gone([here])
    assert owners_are_gone([replace(here, owner_start=here.owner_start - 1)])
    assert not owners_are_gone([elsewhere, replace(here, owner_start=here.owner_start - 1)])


def test_the_figures_of_a_run_need_no_file(run):
    run.metrics(0, 0, {"loss": 1.0})

    assert summarize_run(str(run.run.path)).steps == 1
    assert not Path(run.run.report).exists()
