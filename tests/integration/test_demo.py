"""The demo does what it claims, leaves nothing behind, and does it again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

from production_ml.cli.demo import next_commands
from production_ml.demo.story import CHAMPION_PLAN

pytestmark = pytest.mark.timeout(600)
# By the file that a station's child process writes. Each takes the demo up to there: `make demo-kills` stops at all.
STATIONS = ["data", "train-champion", "evaluate-champion", "train-challenger", "evaluate-challenger", "serve"]
if os.environ.get("PRODUCTION_ML_DEMO_STATIONS") != "all":
    STATIONS = ["data", "train-champion", "serve"]
DEMO = [sys.executable, "-m", "production_ml.cli.main", "demo"]


def processes_that_mention(directory: Path) -> list[str]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = " ".join(process.info["cmdline"] or ())
        if str(directory) in command and process.status() != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
            found.append(command)
    return found


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, tuple[int, list[str]]]]:
    """A demo's directory after Ctrl-C at each station: what each exit status was, and which processes were left."""
    directory = tmp_path_factory.mktemp("demo") / "demo"
    found = {}
    for number, station in enumerate(STATIONS):
        demo = subprocess.Popen([*DEMO, "--dir", str(directory)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        await_file(directory, f"{station}.log", count=number + 1, demo=demo)
        demo.send_signal(signal.SIGINT)
        demo.communicate(timeout=60)
        found[station] = (demo.returncode, left_after_a_while(directory))
    return directory, found


@pytest.fixture(scope="module")
def two_demos(interrupted: tuple[Path, object]) -> tuple[Path, list[dict]]:
    """The measured figures of two demos, one after the other in the directory of the interrupted ones."""
    directory, _ = interrupted
    outcomes = []
    for seed in (1, 2):
        command = [*DEMO, "--dir", str(directory), "--seed", str(seed), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        outcomes.append(json.loads(done.stdout))
    return directory, outcomes


def test_ctrl_c_at_any_station_leaves_no_process(interrupted):
    assert interrupted[1] == {station: (130, []) for station in STATIONS}


def test_each_demo_resumes_from_a_checkpoint_and_redoes_few_steps(two_demos):
    for outcome in two_demos[1]:
        figures = outcome["figures"]
        assert figures["resumed_from_step"] > 0
        assert figures["steps_redone"] == figures["last_step_before"] - figures["resumed_from_step"] + 1
        assert 0 <= figures["steps_redone"] <= 2 * CHAMPION_PLAN.checkpoint_every + 1
        assert figures["down_seconds"] > 0


def test_a_kill_changes_not_one_bit_of_what_is_learned(two_demos):
    """Both demos train the same model and are killed at different steps: the packages are the same."""
    first, second = (outcome["figures"] for outcome in two_demos[1])

    assert first["killed_after_step"] != second["killed_after_step"]
    assert first["champion_content_hash"] == second["champion_content_hash"]


def test_the_second_demo_registers_next_versions_and_both_are_served(two_demos):
    first, second = (outcome["figures"] for outcome in two_demos[1])

    champion, challenger = second["champion_version"], second["challenger_version"]
    assert (champion, challenger) == (first["challenger_version"] + 1, first["challenger_version"] + 2)
    assert [version["version"] for version in second["serving"]] == [str(champion), str(challenger)]
    assert all(version["accuracy"] > 0.8 for version in second["serving"])


def test_the_report_is_there_and_needs_no_network(two_demos):
    report = Path(two_demos[1][-1]["figures"]["report"]).read_text()

    assert "SIGKILL" in report
    assert '<script src="http' not in report


def test_no_process_is_left(two_demos):
    assert left_after_a_while(two_demos[0]) == []


def test_the_commands_that_the_demo_suggests_work_in_a_shell_without_the_environment(two_demos, monkeypatch):
    directory, outcomes = two_demos
    run_dir = Path(outcomes[-1]["figures"]["run_dir"]).relative_to(directory)
    scripts = str(Path(sys.executable).parent)
    others = [folder for folder in os.environ["PATH"].split(os.pathsep) if folder != scripts]
    monkeypatch.setenv("PATH", os.pathsep.join(others))

    find_commands, change_directory, *commands = next_commands(directory, run_dir)

    assert find_commands == f"export PATH={scripts}:$PATH"
    assert change_directory == f"cd {directory}"
    for command in commands:
        # These two would run until stopped; their own tests start them.
        ending = " --help" if command.startswith(("mlflow", "production-ml serve")) else ""
        script = "\n".join(("set -e", find_commands, change_directory, command + ending))
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


def test_keep_serving_answers_until_it_is_stopped(tmp_path):
    directory = tmp_path / "demo"
    demo = subprocess.Popen(
        [*DEMO, "--dir", str(directory), "--keep-serving"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert demo.stdout is not None
    for line in demo.stdout:
        if line.startswith("Serving at"):
            break
    else:
        pytest.fail("the demo ended before it served")
    url = json.loads((directory / "server.json").read_text())["url"]
    with urllib.request.urlopen(f"{url}/v2/models/digits", timeout=10) as response:
        described = json.load(response)
    demo.send_signal(signal.SIGTERM)
    demo.communicate(timeout=60)

    assert described["name"] == "digits"
    assert demo.returncode == 0
    assert left_after_a_while(directory) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()

    done = subprocess.run([*DEMO, "--dir", str(tmp_path / "file")], capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert str(tmp_path / "file") in done.stderr
    assert "Traceback" not in done.stderr


def await_file(directory: Path, name: str, *, count: int, demo: subprocess.Popen[bytes]) -> None:
    """Return when the `count`th demo in this directory has begun to write the file."""
    deadline = time.monotonic() + 180
    while len(list(directory.glob("runs/*"))) < count or not list(max(directory.glob("runs/*")).glob(name)):
        assert demo.poll() is None, demo.communicate()[0].decode()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def left_after_a_while(directory: Path) -> list[str]:
    """Processes that are still there, although an exporter ends within moments of the run that it belongs to."""
    deadline = time.monotonic() + 20
    while (left := processes_that_mention(directory)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left
