"""Monitors and their exporter as real processes: who starts it, what it survives, and when it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from production_ml.monitoring import RunLog, TrainingMonitor
from production_ml.monitoring.exporter.endpoint import Endpoint, read_endpoint
from production_ml.monitoring.run_directory import RunDirectory

NODE = socket.gethostname()

# A worker: makes a monitor, logs a step for each line of its input, and answers each with a line.
WORKER = """
import sys
from production_ml.monitoring import TrainingMonitor
options = eval(sys.argv[1])
monitor = TrainingMonitor("shop", "exp-001", **options)
print(monitor.metrics_url, flush=True)
for step, line in enumerate(sys.stdin):
    if line.strip() == "close":
        monitor.close()
    else:
        monitor.log({"train/loss": float(line)}, step=step)
    print(step, flush=True)
"""


class Worker:
    """A process with a monitor, told what to log."""

    def __init__(self, options: dict[str, object], environment: dict[str, str], cwd: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "scripts/train.py", repr(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            cwd=cwd,
        )

    def read(self) -> str:
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()
        return line.strip()

    def say(self, line: object) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return self.read()

    def end(self) -> str:
        """Let the script end; returns what it wrote to stderr."""
        _, errors = self.process.communicate(timeout=30)
        assert self.process.returncode == 0, errors
        return errors

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


@pytest.fixture
def start(run: RunDirectory, tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "train.py").write_text(WORKER)
    workers: list[Worker] = []

    def worker(environment: dict[str, str] | None = None, **options: object) -> Worker:
        given = {"metrics_port": 0, "run_dir": str(run.path), **options}
        workers.append(Worker(given, environment or {}, tmp_path))
        return workers[-1]

    yield worker
    for made in workers:
        made.kill()
    await_end(run)


@pytest.fixture
def launcher() -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives until it is killed, as the owner of a run."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


def launched(launcher: subprocess.Popen[bytes], *, rank: int = 0, attempt: int = 0) -> dict[str, str]:
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "PRODUCTION_ML_ATTEMPT": attempt}
    owner = {"PRODUCTION_ML_OWNER_PID": launcher.pid, "TORCHELASTIC_RUN_ID": "none"}
    return {name: str(value) for name, value in {**numbers, **owner}.items()}


def scrape(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())


def await_scrape(url: str, wanted: str) -> str:
    """Scrape until `wanted` is there; an exporter reads the log twice a second."""
    deadline = time.monotonic() + 30
    while wanted not in (text := scrape(url)):
        assert time.monotonic() < deadline, text
        time.sleep(0.05)
    return text


def losses(text: str) -> dict[str, float]:
    """Rank to the loss that a scrape shows for it."""
    shown = re.findall(r'^train_loss{.*rank="(\d+)".*} (\S+)$', text, re.MULTILINE)
    return {rank: float(value) for rank, value in shown}


def await_losses(url: str, wanted: dict[str, float]) -> None:
    """Scrape until the loss of each rank is the wanted one."""
    deadline = time.monotonic() + 30
    while (shown := losses(scrape(url))) != wanted:
        assert time.monotonic() < deadline, shown
        time.sleep(0.05)


def await_end(run: RunDirectory) -> None:
    """Return once no exporter of the run is left on this node."""
    deadline = time.monotonic() + 60
    while exporters(run):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def exporters(run: RunDirectory) -> list[int]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if "production_ml.monitoring.exporter" in command and str(run.path) in command:
            found.append(process.pid)
    return found


def endpoint_of(run: RunDirectory) -> Endpoint:
    endpoint = read_endpoint(run, NODE)
    assert endpoint is not None
    return endpoint


def test_what_was_logged_is_served_and_nothing_is_left_when_the_monitor_closes(run, start):
    worker = start()
    url = worker.read()
    worker.say(0.5)

    text = await_scrape(url, "train_loss{")
    worker.say("close")
    await_end(run)

    assert f'train_loss{{job="shop/exp-001",node="{NODE}",rank="0"' in text
    assert exporters(run) == []
    assert not run.exporter_endpoint(NODE).exists()
    with pytest.raises(urllib.error.URLError):
        scrape(url)


def test_monitors_that_start_at_once_share_one_exporter(run, start, launcher):
    workers = [start(launched(launcher, rank=rank)) for rank in range(4)]

    urls = {worker.read() for worker in workers}

    assert len(urls) == 1
    assert urls != {"None"}
    assert exporters(run) == [endpoint_of(run).pid]


def test_workers_are_killed_and_restarted_and_no_scrape_fails(run, start, launcher):
    first = start(launched(launcher))
    url = first.read()
    first.say(1.0)
    await_scrape(url, "training_attempt{")
    stop, answers = threading.Event(), []

    def keep_scraping() -> None:
        while not stop.wait(0.02):
            answers.append("train_loss{" in scrape(url))

    scraper = threading.Thread(target=keep_scraping)
    scraper.start()
    first.kill()
    second = start(launched(launcher, attempt=1))
    url_after_restart = second.read()
    second.say(2.0)
    text = await_scrape(
        url, 'training_attempt{job="shop/exp-001",run="' + RunLog.open(run.path).identity.run_id + '"} 1.0'
    )
    stop.set()
    scraper.join()

    assert url_after_restart == url
    assert all(answers)
    assert len(answers) > 5
    assert 'rank="0"' in text


def test_under_a_launcher_closed_workers_do_not_end_the_exporter_and_a_killed_launcher_does(run, start, launcher):
    worker = start(launched(launcher))
    url = worker.read()
    worker.say(1.0)
    await_scrape(url, "train_loss{")
    worker.say("close")
    worker.end()
    await_scrape(url, 'event="monitor_closed"')

    launcher.kill()
    launcher.wait()
    await_end(run)

    assert exporters(run) == []


def test_a_network_disk_that_fails_for_a_while_does_not_end_the_exporter(run, start):
    worker = start()
    url = worker.read()
    worker.say(0.5)
    await_scrape(url, "train_loss{")
    exporter = endpoint_of(run)
    away = run.path / "elsewhere"
    run.log_directory.rename(away)
    run.log_directory.symlink_to("x" * 300)  # every look at it raises an OSError
    output = run.exporter_output(NODE)
    deadline = time.monotonic() + 30
    while "cannot be looked at, 2 time(s)" not in output.read_text():
        assert time.monotonic() < deadline, output.read_text()
        time.sleep(0.05)
    run.log_directory.unlink()
    away.rename(run.log_directory)
    worker.say(0.25)

    await_losses(url, {"0": 0.25})

    assert endpoint_of(run) == exporter


def test_a_cell_that_is_run_again_leaves_one_exporter(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monitors = [TrainingMonitor("shop", "exp-001", 0) for _ in range(3)]

    for monitor in monitors[:2]:
        await_end(RunDirectory(monitor.run_dir))
    assert len(exporters(RunDirectory(monitors[2].run_dir))) == 1
    monitors[2].close()
    await_end(RunDirectory(monitors[2].run_dir))


def test_alone_the_exporter_ends_with_the_script_even_by_sigkill(run, start):
    worker = start()
    await_scrape(worker.read(), "run_events_total")
    worker.kill()

    await_end(run)

    assert exporters(run) == []


def test_alone_a_script_that_ends_without_closing_ends_the_exporter(run, start):
    worker = start()
    await_scrape(worker.read(), "run_events_total")
    worker.end()

    await_end(run)

    assert exporters(run) == []


def test_a_taken_port_is_passed_over_with_a_warning_and_training_goes_on(run, start):
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        worker = start(metrics_port=taken)
        url = worker.read()
        worker.say(0.5)
        await_scrape(url, "train_loss{")
        errors = worker.end()

    assert url != f"http://127.0.0.1:{taken}/metrics"
    assert f"metrics port {taken} on 127.0.0.1 is in use" in errors
    assert url in errors
    assert len(list(RunLog.open(run.path).metrics())) == 1


def test_two_runs_on_one_machine_do_not_share_a_port(run, start, tmp_path):
    first = start()
    port = int(first.read().rpartition(":")[2].split("/")[0])
    other = RunDirectory(tmp_path / "other")
    second = start(metrics_port=port, run_dir=str(other.path))
    url = second.read()
    first.say(1.0)
    second.say(2.0)

    await_losses(url, {"0": 2.0})
    second.end()
    await_end(other)


def test_the_exporter_is_nobodys_child_so_that_no_launcher_stops_it_with_a_worker(run, start):
    worker = start()
    await_scrape(worker.read(), "run_events_total")

    assert psutil.Process(worker.process.pid).children(recursive=True) == []
    assert exporters(run) == [endpoint_of(run).pid]


def test_a_killed_exporter_is_not_noticed_by_training_and_the_next_monitor_starts_another(run, start, launcher):
    worker = start(launched(launcher))
    url = worker.read()
    worker.say(1.0)
    await_scrape(url, "train_loss{")
    killed = endpoint_of(run)
    os.kill(killed.pid, signal.SIGKILL)
    answers = [worker.say(2.0), worker.say(3.0)]
    second = start(launched(launcher, rank=1))
    second_url = second.read()
    second.say(9.0)

    await_losses(second_url, {"0": 3.0, "1": 9.0})

    assert answers == ["1", "2"]
    assert endpoint_of(run).pid != killed.pid
    assert exporters(run) == [endpoint_of(run).pid]


def test_what_a_dead_exporter_of_the_same_run_left_behind_misleads_nobody(run, start):
    worker = start()
    await_scrape(worker.read(), "run_events_total")
    os.kill(endpoint_of(run).pid, signal.SIGKILL)
    worker.kill()
    left_behind = run.exporter_endpoint(NODE).read_text()

    second = start()
    url = second.read()
    second.say(4.0)

    await_losses(url, {"0": 4.0})
    assert run.exporter_endpoint(NODE).read_text() != left_behind


def test_an_exporter_whose_starter_was_killed_before_it_told_the_others_makes_way(run, start, launcher):
    worker = start(launched(launcher))
    await_scrape(worker.read(), "run_events_total")
    untold = endpoint_of(run).pid
    run.exporter_endpoint(NODE).unlink()
    worker.kill()
    second = start(launched(launcher, attempt=1))
    url = second.read()
    second.say(5.0)

    await_losses(url, {"0": 5.0})
    psutil.wait_procs([process for process in psutil.process_iter() if process.pid == untold], timeout=30)

    assert endpoint_of(run).pid != untold
    assert exporters(run) == [endpoint_of(run).pid]


def test_a_script_may_monitor_the_same_run_again_after_closing(run):
    for number in range(3):
        with TrainingMonitor("shop", "exp-001", 0, run_dir=run.path) as monitor:
            monitor.log({"train/loss": float(number)})
            assert monitor.metrics_url is not None
            await_losses(monitor.metrics_url, {"0": number})

    await_end(run)
    assert exporters(run) == []
    assert [values["train/loss"] for values in _values(run)] == [0.0, 1.0, 2.0]


def test_the_exporter_finds_a_third_partys_sink_and_not_what_lies_in_the_working_directory(run, start, tmp_path):
    packages = tmp_path / "packages"
    info = packages / "their_sink-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-sink\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[production_ml.sinks]\ntheirs = their_sink:TheirSink\n")
    (packages / "their_sink.py").write_text(
        "class TheirSink:\n"
        "    def open(self, run, identity):\n"
        "        self.path = run.path / 'theirs.txt'\n"
        "    def write(self, records):\n"
        "        with self.path.open('a') as file:\n"
        "            file.writelines(f'{sourced.record}\\n' for sourced in records)\n"
        "    def close(self):\n"
        "        pass\n"
    )
    (tmp_path / "argparse.py").write_text("raise RuntimeError('the wrong argparse')\n")
    worker = start({"PYTHONPATH": str(packages)}, sinks=("theirs", "jsonl"))

    assert worker.read() == "None"  # nothing is served, so there is no address
    worker.say(0.5)
    worker.say("close")
    worker.end()
    await_end(run)

    assert "'train/loss': 0.5" in (run.path / "theirs.txt").read_text()
    lines = [json.loads(line) for line in run.metrics_jsonl.read_text().splitlines()]
    assert {"train/loss": 0.5} in [line.get("metrics") for line in lines]


def test_a_sink_that_cannot_be_loaded_takes_no_other_with_it(run, start, tmp_path):
    packages = tmp_path / "packages"
    info = packages / "their_sink-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-sink\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[production_ml.sinks]\ntheirs = no_such_module:TheirSink\n")
    worker = start({"PYTHONPATH": str(packages)}, sinks=("theirs", "prometheus"))
    url = worker.read()
    worker.say(0.5)

    await_scrape(url, "train_loss{")

    assert "sink 'theirs' cannot be used" in run.exporter_output(NODE).read_text()


def test_real_tensors_are_taken_without_a_warning(run):
    code = f"""
import torch
from production_ml.monitoring import TrainingMonitor
with TrainingMonitor("shop", "exp-001", None, run_dir={str(run.path)!r}) as monitor:
    weight = torch.tensor([2.0], requires_grad=True)
    monitor.log({{"train/loss": (weight * 1.5).sum(), "half": torch.tensor(0.5, dtype=torch.bfloat16),
                 "count": torch.tensor(3), "many": torch.ones(3)}})
"""
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )

    assert ended.returncode == 0, ended.stderr
    assert list(_values(run)) == [{"train/loss": 3.0, "half": 0.5, "count": 3.0}]
    assert "'many'" in ended.stderr


def test_tail_shows_the_newest_records_for_people_and_for_programs(run, start):
    worker = start(metrics_port=None)
    worker.read()
    for loss in (0.5, "nan"):
        worker.say(loss)
    worker.end()

    text, as_json = _cli("tail", run.path, "--lines", "3"), _cli("tail", run.path, "--json")

    assert text.splitlines()[0].endswith("rank 0 step 0  train/loss=0.5")
    assert text.splitlines()[1].endswith("rank 0 step 1  train/loss=nan")
    assert [json.loads(line)["metrics"] for line in as_json.splitlines()[-3:-1]] == [
        {"train/loss": 0.5},
        {"train/loss": "NaN"},
    ]


def test_tail_follows_a_run_until_it_ends(run, start):
    worker = start(metrics_port=None)
    worker.read()
    worker.say(1.0)
    command = [sys.executable, "-m", "production_ml.cli.main", "monitor", "tail", str(run.path), "--follow", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as tail:
        assert tail.stdout is not None
        while '"metrics":' not in tail.stdout.readline():
            pass
        worker.say(2.0)
        seen = json.loads(tail.stdout.readline())
        worker.say("close")
        last = json.loads(tail.stdout.readlines()[-1])

    assert seen["metrics"] == {"train/loss": 2.0}
    assert last["event"] == "monitor_closed"
    assert tail.returncode == 0


def test_ctrl_c_ends_a_tail_with_the_status_of_an_interrupt(run, start):
    worker = start(metrics_port=None)
    worker.read()
    worker.say(1.0)
    command = [sys.executable, "-m", "production_ml.cli.main", "monitor", "tail", str(run.path), "--follow"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as tail:
        assert tail.stdout is not None
        assert tail.stderr is not None
        while "train/loss" not in tail.stdout.readline():
            pass
        tail.send_signal(signal.SIGINT)
        errors = tail.stderr.read()

    assert tail.returncode == 130
    assert "Traceback" not in errors


def test_tail_of_no_run_is_bad_input(tmp_path):
    command = [sys.executable, "-m", "production_ml.cli.main", "monitor", "tail", str(tmp_path)]

    ended = subprocess.run(command, capture_output=True, text=True, check=False)

    assert ended.returncode == 2
    assert "holds no run" in ended.stderr


def _values(run: RunDirectory) -> Iterator[dict[str, float]]:
    for _, record in RunLog.open(run.path).metrics():
        yield dict(record.values)


def _cli(*arguments: object) -> str:
    command = [sys.executable, "-m", "production_ml.cli.main", "monitor", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
