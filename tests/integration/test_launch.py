"""The whole launcher as a person uses it: restarts, exit codes, messages, and no process left behind."""

from __future__ import annotations

import fcntl
import json
import signal
import socket
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from production_ml.cli.main import main
from production_ml.monitoring.run_directory import process_start
from production_ml.monitoring.run_log import RunLog

COMMAND = [sys.executable, "-m", "production_ml.cli.main", "launch"]
LONG = 120.0

ALL_REDUCE = """
import os, signal, sys
import torch
import torch.distributed as dist

victim, kill_at = int(sys.argv[1]), int(sys.argv[2])
attempt = int(os.environ["PRODUCTION_ML_ATTEMPT"])
dist.init_process_group("gloo")
for step in range(20):
    if attempt == 0 and dist.get_rank() == victim and step == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
    total = torch.ones(1)
    dist.all_reduce(total)
    if total.item() != dist.get_world_size():
        sys.exit(f"step {step}: the sum is {total.item()}")
print(f"rank {dist.get_rank()} finished in attempt {attempt}")
dist.destroy_process_group()
"""
PIDS_AND_SLEEP = """
import os, pathlib, signal, subprocess, sys, time

if "stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "600"])
rank = os.environ["RANK"]
pathlib.Path(f"pids-{rank}.part").write_text(f"{os.getpid()} {child.pid}")
pathlib.Path(f"pids-{rank}.part").rename(f"pids-{rank}")
time.sleep(600)
"""


@pytest.fixture
def launch(tmp_path, monkeypatch):
    for variable in ("PRODUCTION_ML_RUN_DIR", "PRODUCTION_ML_RUNS"):
        monkeypatch.delenv(variable, raising=False)

    def launch(script: str, *arguments: str, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        (tmp_path / "train.py").write_text(script)
        command = [*COMMAND, "--run-dir", "run", *flags, "train.py", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=LONG)

    return launch


@pytest.fixture
def sleeping(tmp_path):
    """A launch whose two workers, each with a child, sleep; it is killed if a test has left it."""
    started: list[subprocess.Popen[bytes]] = []

    def sleeping(*arguments: str, flags: tuple[str, ...] = ()) -> tuple[subprocess.Popen[bytes], list[int]]:
        (tmp_path / "train.py").write_text(PIDS_AND_SLEEP)
        command = [*COMMAND, "--nproc-per-node=2", "--run-dir", "run", *flags, "train.py", *arguments]
        with (tmp_path / "stderr").open("w") as stderr:
            started.append(subprocess.Popen(command, cwd=tmp_path, stderr=stderr))
        files = [tmp_path / "pids-0", tmp_path / "pids-1"]
        wait_for(lambda: all(file.exists() for file in files), "the start of both workers")
        return started[-1], [int(pid) for file in files for pid in file.read_text().split()]

    yield sleeping
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def run_here(tmp_path, monkeypatch, capfd):
    """The command in this process, which spares each test the import of torch: exit code, stdout, stderr."""
    for variable in ("PRODUCTION_ML_RUN_DIR", "PRODUCTION_ML_RUNS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)

    def run_here(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["production-ml", "launch", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), *capfd.readouterr()

    return run_here


def wait_for(condition, what: str) -> None:
    deadline = time.monotonic() + LONG
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"{what} did not happen within {LONG} s")
        time.sleep(0.01)


def waiting_bytes(pipe) -> int:
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


def is_gone(pid: int) -> bool:
    return process_start(pid) == 0


def events(run_dir: Path, name: str) -> list[dict]:
    return [dict(event.fields) for source, event in RunLog.open(run_dir).events(name) if source.role == "launcher"]


def test_training_goes_on_after_one_rank_is_killed(launch, tmp_path, rng):
    victim, kill_at = rng.randrange(2), rng.randrange(20)

    done = launch(ALL_REDUCE, str(victim), str(kill_at), flags=("--nproc-per-node", "2"))

    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["rank 0 finished in attempt 1", "rank 1 finished in attempt 1"]
    starts = events(tmp_path / "run", "attempt_started")
    assert [(start["attempt"], start["world_size"]) for start in starts] == [(0, 2), (1, 2)]
    first = events(tmp_path / "run", "worker_failed")[0]
    assert (first["attempt"], first["rank"], first["signal"], first["exit_code"]) == (0, victim, "SIGKILL", -9)
    assert first["pid"] == starts[0]["worker_pids"][str(victim)]
    assert events(tmp_path / "run", "restart_scheduled") == [{"attempt": 1, "restarts_left": 2}]
    assert events(tmp_path / "run", "launch_finished") == [{"outcome": "succeeded", "exit_code": 0}]
    assert f"rank {victim} (pid {first['pid']}) was killed by SIGKILL" in done.stderr


def test_two_nodes_restart_together(tmp_path):
    (tmp_path / "train.py").write_text(ALL_REDUCE)
    flags = ["--nnodes=2", "--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{free_port()}", "--rdzv-id=job"]
    command = [*COMMAND, *flags, "--local-addr=127.0.0.1", "--run-dir=run", "train.py", "0", "7"]

    nodes = [subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) for _ in "12"]
    printed = b"".join(node.communicate(timeout=LONG)[0] for node in nodes)

    assert [node.returncode for node in nodes] == [0, 0]
    assert sorted(printed.splitlines()) == [b"rank 0 finished in attempt 1", b"rank 1 finished in attempt 1"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def test_a_script_that_always_fails_uses_up_the_budget_and_shows_its_traceback(run_here, tmp_path):
    script = "import os\nprint('attempt', os.environ['PRODUCTION_ML_ATTEMPT'])\nraise ValueError('the data is boom')\n"
    (tmp_path / "train.py").write_text(script)

    exit_code, printed, complaints = run_here("--max-restarts", "2", "--run-dir", "run", "train.py")

    assert exit_code == 1
    assert printed.splitlines() == ["attempt 0", "attempt 1", "attempt 2"]
    _, _, message = complaints.partition("\nError: ")
    assert "attempt 2: rank 0" in message
    assert "exit code 1: ValueError: the data is boom" in message
    assert '  |   File "' in message
    assert "--max-restarts 2 is used up" in message
    assert f"--run-dir {tmp_path / 'run'}" in message
    failures = events(tmp_path / "run", "worker_failed")
    assert [failure["attempt"] for failure in failures] == [0, 1, 2]
    assert failures[0]["reason"] == "ValueError: the data is boom"
    assert events(tmp_path / "run", "launch_finished") == [{"outcome": "failed", "exit_code": 1}]


def test_the_output_of_each_attempt_and_rank_is_kept_also_over_launches(run_here, tmp_path):
    script = "import os, sys\nprint(os.environ['PRODUCTION_ML_ATTEMPT'], os.environ['RANK'])\nsys.exit('no')\n"
    (tmp_path / "train.py").write_text(script)
    arguments = ("--nproc-per-node=2", "--max-restarts=1", "--redirects=3", "--run-dir=run", "train.py")

    first, second = run_here(*arguments), run_here(*arguments)

    assert first[1] == second[1] == ""
    for attempt in range(4):
        for rank in range(2):
            kept = tmp_path / "run" / "logs" / f"attempt-{attempt:03d}" / f"rank-{rank:05d}.stdout.log"
            # The second to fail may be stopped before it prints, or amid it.
            assert f"{attempt} {rank}\n".startswith(kept.read_text())
    assert [start["attempt"] for start in events(tmp_path / "run", "attempt_started")] == [0, 1, 2, 3]


def test_an_exception_that_the_script_recorded_is_the_reason(run_here, tmp_path):
    script = (
        "from torch.distributed.elastic.multiprocessing.errors import record\n"
        "@record\ndef main():\n    raise KeyError('label')\nmain()\n"
    )
    (tmp_path / "train.py").write_text(script)

    run_here("--max-restarts=0", "--run-dir=run", "train.py")

    failure = events(tmp_path / "run", "worker_failed")[0]
    assert failure["reason"] == "KeyError: 'label'"
    assert "raise KeyError('label')" in failure["traceback"]


def test_a_run_without_a_monitor_can_be_reported(run_here, tmp_path):
    (tmp_path / "train.py").write_text("pass\n")

    exit_code, _, _ = run_here("--run-dir=run", "train.py")

    assert exit_code == 0
    identity = json.loads((tmp_path / "run" / "run.json").read_text())
    assert identity == {"project": "train", "experiment": "launch", "run_id": "run"}


def test_quiet_leaves_stderr_to_the_script(run_here, tmp_path):
    (tmp_path / "train.py").write_text("import sys\nsys.stderr.write('mine\\n')\n")

    _, _, complaints = run_here("--quiet", "--nproc-per-node=2", "--run-dir=run", "train.py")

    assert complaints == "mine\nmine\n"


def test_a_program_that_is_no_python_script_is_run(run_here, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    script = ("sh", "-c", "echo $LOCAL_RANK of $WORLD_SIZE with $OMP_NUM_THREADS")

    _, printed, complaints = run_here("--quiet", "--run-dir=run", "--no-python", "--nproc_per_node=2", *script)

    assert sorted(printed.splitlines()) == ["0 of 2 with 1", "1 of 2 with 1"]
    assert complaints == ""


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["missing.py"], "missing.py"),
        (["--nproc-per-node", "0", "there.py"], "--nproc-per-node"),
        (["--run-dir", "there.py/run", "there.py"], "run directory cannot be written"),
        (["--log-dir", "there.py/logs", "there.py"], "cannot be kept"),
    ],
)
def test_bad_input_starts_nothing(run_here, tmp_path, arguments, named):
    (tmp_path / "there.py").write_text("open('started', 'w')")

    exit_code, _, complaints = run_here(*arguments)

    assert exit_code == 2
    assert named in complaints
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_workers_and_their_children(sleeping, tmp_path, number, exit_code):
    launcher, pids = sleeping()

    launcher.send_signal(number)

    assert launcher.wait(LONG) == exit_code
    wait_for(lambda: all(is_gone(pid) for pid in pids), "the end of all processes")
    assert events(tmp_path / "run", "launch_finished") == [{"outcome": "interrupted", "exit_code": exit_code}]
    assert events(tmp_path / "run", "worker_failed") == []


def test_workers_that_ignore_sigterm_are_killed_after_the_timeout(sleeping):
    launcher, pids = sleeping("stubborn", flags=("--shutdown-timeout", "1"))

    launcher.terminate()

    assert launcher.wait(LONG) == 143
    wait_for(lambda: all(is_gone(pid) for pid in pids), "the end of all processes")


def test_a_second_ctrl_c_does_not_wait_for_the_timeout(sleeping, tmp_path):
    launcher, pids = sleeping("stubborn", flags=("--shutdown-timeout", "3600"))

    launcher.send_signal(signal.SIGINT)
    wait_for(lambda: "SIGINT: stopping" in (tmp_path / "stderr").read_text(), "the launcher's answer")
    launcher.send_signal(signal.SIGINT)

    assert launcher.wait(LONG) == 130
    wait_for(lambda: all(is_gone(pid) for pid in pids), "the end of all processes")


def test_a_launch_whose_output_nobody_reads_can_be_stopped(tmp_path):
    (tmp_path / "train.py").write_text("while True:\n    print('x' * 1000, flush=True)\n")
    command = [*COMMAND, "--run-dir", "run", "train.py"]
    nearly_all_that_a_pipe_holds = 60_000

    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as launcher:
        try:
            wait_for(lambda: waiting_bytes(launcher.stdout) > nearly_all_that_a_pipe_holds, "enough output")
            launcher.terminate()

            assert launcher.wait(LONG) == 143
        finally:
            launcher.kill()


def test_a_killed_launcher_leaves_no_worker_and_no_child_of_one(sleeping):
    launcher, pids = sleeping("stubborn")

    launcher.kill()
    launcher.wait()

    wait_for(lambda: all(is_gone(pid) for pid in pids), "the end of all processes")


def test_the_help_teaches_without_loading_torch():
    probe = "import sys; from production_ml.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", probe, "launch", "--help"],
        capture_output=True,
        text=True,
        timeout=LONG,
    )

    assert done.returncode == 0
    for word in ("production-ml launch --nproc-per-node 2 train.py", "--run-dir", "--max-restarts", "PET_"):
        assert word in done.stdout
    assert "| torch\n" not in done.stderr


def test_all_flags_of_torchrun_are_listed(run_here):
    exit_code, printed, _ = run_here("-h")

    assert exit_code == 0
    for flag in ("--rdzv-endpoint", "--numa-binding", "--run-dir"):
        assert flag in printed
