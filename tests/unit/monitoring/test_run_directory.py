"""A run has one directory and one identity, whoever of its processes comes first."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from production_ml.core.distributed_env import DistributedEnv
from production_ml.core.errors import ConfigError, InputFileError, RunDirectoryError
from production_ml.monitoring.run_directory import (
    RunDirectory,
    RunIdentity,
    choose_run_directory,
    new_run_id,
    process_start,
    shared_run_id,
)

IDENTITY = RunIdentity(project="shop", experiment="exp-001", run_id="r1")
ALONE = DistributedEnv(owner_pid=os.getpid())
LAUNCHED = DistributedEnv(owner_pid=os.getppid())


def test_the_launchers_directory_goes_before_the_callers_and_that_before_a_new_one(tmp_path):
    launched = {"PRODUCTION_ML_RUN_DIR": str(tmp_path / "launched"), "PRODUCTION_ML_RUNS": str(tmp_path)}

    assert choose_run_directory(IDENTITY, run_dir="mine", environ=launched).path == tmp_path / "launched"
    assert choose_run_directory(IDENTITY, run_dir=tmp_path / "mine", environ={}).path == tmp_path / "mine"
    new = choose_run_directory(IDENTITY, run_dir=None, environ={"PRODUCTION_ML_RUNS": str(tmp_path)})
    assert new.path == tmp_path / "shop" / "exp-001" / "r1"


@pytest.mark.parametrize("field", ["project", "experiment", "run_id"])
@pytest.mark.parametrize("run_dir", [None, "given"])
def test_a_bad_name_is_refused_whether_it_names_a_directory_this_time_or_not(field, run_dir):
    facts = {"project": "shop", "experiment": "exp", "run_id": "r1", field: "../escape"}

    with pytest.raises(ConfigError, match=field):
        choose_run_directory(RunIdentity(**facts), run_dir=run_dir, environ={})


def test_a_place_below_a_file_is_refused_with_a_cure(tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(RunDirectoryError, match=r"cannot be written \(Not a directory\)") as caught:
        RunDirectory(tmp_path / "file" / "run").create()

    assert "PRODUCTION_ML_RUNS" in str(caught.value)


def test_a_place_that_takes_no_files_is_refused_although_it_exists():
    with pytest.raises(RunDirectoryError, match="cannot be written"):
        RunDirectory(Path("/proc/self")).create()


def test_creating_leaves_no_litter_and_can_be_repeated(run):
    run.create()

    assert sorted(path.name for path in run.path.rglob("*")) == ["exporter", "logs", "run.json", "run_log"]


def test_whoever_claims_first_decides_for_all(tmp_path):
    run = RunDirectory(tmp_path)
    wishes = [RunIdentity(project="shop", experiment="exp-001", run_id=f"r{number}") for number in range(8)]

    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(run.claim, wishes))

    assert len(set(got)) == 1
    assert got[0] == run.identity()
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_directory_without_a_run_says_so(tmp_path):
    with pytest.raises(InputFileError, match="holds no run"):
        RunDirectory(tmp_path).identity()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"project": "shop"}', '{"a": 1}', "null"])
def test_a_damaged_identity_is_named_and_not_guessed(tmp_path, content):
    run = RunDirectory(tmp_path)
    run.identity_file.write_text(content)

    with pytest.raises(InputFileError, match=r"run\.json"):
        run.identity()


def test_new_run_ids_differ_and_can_name_directories():
    ids = {new_run_id() for _ in range(100)}

    assert len(ids) == 100
    for run_id in ids:
        choose_run_directory(RunIdentity(project="p", experiment="e", run_id=run_id), run_dir=None, environ={})


def test_ranks_under_one_launcher_agree_without_talking():
    assert shared_run_id({"TORCHELASTIC_RUN_ID": "none"}, LAUNCHED) == shared_run_id({}, LAUNCHED)
    assert shared_run_id({"TORCHELASTIC_RUN_ID": "job-7"}, LAUNCHED) == "job-7"


@pytest.mark.parametrize("given", ["/jobs/a b", "--x", "é" * 200, "a" * 300])
def test_any_id_that_a_launcher_gives_can_name_a_directory(given):
    run_id = shared_run_id({"TORCHELASTIC_RUN_ID": given}, LAUNCHED)

    choose_run_directory(RunIdentity(project="p", experiment="e", run_id=run_id), run_dir=None, environ={})


def test_processes_of_one_srun_share_their_job_step():
    step = {"SLURM_JOB_ID": "812", "SLURM_STEP_ID": "0"}

    assert shared_run_id(step, ALONE) == "slurm-812-0"


def test_scripts_that_were_started_by_hand_are_runs_of_their_own():
    assert shared_run_id({}, ALONE) != shared_run_id({}, ALONE)


def test_a_process_is_known_by_its_start_and_a_dead_one_is_none():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    start = process_start(child.pid)
    child.communicate()

    assert start >= process_start(os.getpid()) > 0
    assert process_start(child.pid) == 0


def test_a_process_that_ended_and_was_not_waited_for_counts_as_dead():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

    zombie = process_start(pid)

    os.waitpid(pid, 0)
    assert zombie == 0
