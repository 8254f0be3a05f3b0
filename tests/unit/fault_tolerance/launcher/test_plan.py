"""torchrun's flags are read as torchrun reads them, ours beside them, and what cannot work is refused."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from production_ml.core.errors import ConfigError, InputFileError
from production_ml.fault_tolerance.launcher.plan import parse_arguments


@pytest.fixture(autouse=True)
def in_a_directory_with_a_script(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for variable in ("PRODUCTION_ML_RUN_DIR", "PRODUCTION_ML_RUNS", "OMP_NUM_THREADS", "PYTHON_EXEC"):
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "train.py").touch()


@pytest.mark.parametrize("flag", ["--nproc-per-node=2", "--nproc_per_node=2"])
def test_both_spellings_are_taken(flag):
    assert parse_arguments([flag, "train.py"]).config.nproc_per_node == 2


def test_what_follows_the_script_is_the_scripts():
    plan = parse_arguments(["train.py", "--quiet", "--nproc-per-node", "7", "--run-dir=x"])

    assert plan.command == (sys.executable, "-u", "train.py", "--quiet", "--nproc-per-node", "7", "--run-dir=x")
    assert not plan.is_quiet
    assert plan.config.nproc_per_node == 1


def test_a_module_and_a_program_are_run_as_torchrun_runs_them():
    assert parse_arguments(["-m", "json.tool", "x"]).command == (sys.executable, "-u", "-m", "json.tool", "x")
    assert parse_arguments(["--no-python", "sh", "-c", "true"]).command == ("sh", "-c", "true")


def test_three_restarts_are_the_default_and_a_flag_or_variable_overrides_it(monkeypatch):
    assert parse_arguments(["train.py"]).config.max_restarts == 3
    assert parse_arguments(["--max-restarts", "0", "train.py"]).config.max_restarts == 0

    monkeypatch.setenv("PET_MAX_RESTARTS", "5")
    assert parse_arguments(["train.py"]).config.max_restarts == 5
    assert parse_arguments(["--max_restarts=1", "train.py"]).config.max_restarts == 1


def test_without_rendezvous_flags_one_node_serves_itself_on_the_loopback():
    plan = parse_arguments(["train.py"])

    assert plan.is_single_node
    assert (plan.host, plan.port) == ("127.0.0.1", 0)


def test_several_nodes_meet_where_torchrun_would_let_them_meet():
    flags = ["--nnodes", "2:4", "--rdzv-backend", "c10d", "--rdzv-endpoint", "node1:29400", "--rdzv-id", "job/7"]

    plan = parse_arguments([*flags, "train.py"])

    assert not plan.is_single_node
    assert (plan.config.min_nodes, plan.config.max_nodes) == (2, 4)
    assert (plan.config.rdzv_endpoint, plan.config.run_id) == ("node1:29400", "job/7")
    assert plan.run.path.name == "job-7"


def test_a_run_directory_is_made_up_unless_one_is_given(tmp_path, monkeypatch):
    first, second = parse_arguments(["train.py"]), parse_arguments(["train.py"])
    assert first.run.path.parent == second.run.path.parent == tmp_path / "runs" / "train"
    assert first.run.path != second.run.path
    assert first.config.run_id == first.run.path.name

    monkeypatch.setenv("PRODUCTION_ML_RUNS", "elsewhere")
    assert parse_arguments(["train.py"]).run.path.parent == tmp_path / "elsewhere" / "train"
    monkeypatch.setenv("PRODUCTION_ML_RUN_DIR", "submitted")
    assert parse_arguments(["train.py"]).run.path == tmp_path / "submitted"
    assert parse_arguments(["--run-dir", "mine", "train.py"]).run.path == tmp_path / "mine"


def test_planning_leaves_no_trace(tmp_path, caplog):
    before = dict(os.environ)

    parse_arguments(["--nproc-per-node", "2", "train.py"])

    assert dict(os.environ) == before
    assert [path.name for path in tmp_path.iterdir()] == ["train.py"]
    assert "OMP_NUM_THREADS" not in caplog.text


def test_redirects_and_the_rank_filter_decide_what_reaches_the_terminal():
    def shown(*flags: str) -> set[tuple[int, int]]:
        return set(parse_arguments(["--nproc-per-node=2", *flags, "train.py"]).shown)

    assert shown() == {(0, 1), (0, 2), (1, 1), (1, 2)}
    assert shown("--redirects", "1") == {(0, 2), (1, 2)}
    assert shown("--redirects", "3", "--tee", "0:3") == {(0, 1), (0, 2)}
    assert shown("--local-ranks-filter", "1") == {(1, 1), (1, 2)}


def test_signals_are_read_by_name():
    plan = parse_arguments(["--signals-to-handle", "SIGTERM,SIGUSR1", "train.py"])

    assert plan.signals == (signal.SIGTERM, signal.SIGUSR1)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--nproc-per-node", "0", "train.py"],
        ["--nproc-per-node", "-1", "train.py"],
        ["--nproc-per-node", "two", "train.py"],
        ["--nnodes", "0", "train.py"],
        ["--nnodes", "2:1", "train.py"],
        ["--nnodes", "many", "train.py"],
        ["--nnodes", "2", "--standalone", "train.py"],
        ["--nnodes", "2", "train.py"],
        ["--max-restarts", "-1", "train.py"],
        ["--max-restarts", "x", "train.py"],
        ["--monitor-interval", "0", "train.py"],
        ["--shutdown-timeout", "-1", "train.py"],
        ["--signals-to-handle", "SIGFOO", "train.py"],
        ["--rdzv-conf", "timeout", "train.py"],
        ["--redirects", "9", "train.py"],
        ["--local-ranks-filter", "first", "train.py"],
        ["--logs-specs", "mine", "train.py"],
        ["--no-such-flag", "train.py"],
        ["-m", "--no-python", "json.tool"],
    ],
    ids=" ".join,
)
def test_a_flag_that_cannot_work_is_refused(arguments, capsys):
    with pytest.raises(ConfigError) as refusal:
        parse_arguments(arguments)

    assert refusal.value.exit_code == 2
    assert capsys.readouterr().err == ""


def test_a_variable_that_cannot_work_is_refused(monkeypatch):
    monkeypatch.setenv("PET_STANDALONE", "yes")

    with pytest.raises(ConfigError, match="PET_"):
        parse_arguments(["train.py"])


def test_a_missing_script_is_refused():
    with pytest.raises(InputFileError, match=r"missing\.py"):
        parse_arguments(["missing.py"])
