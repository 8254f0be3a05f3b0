"""`production-ml drill` on the digits example: real faults, and verdicts that a script can read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psutil

SCRIPT = Path(__file__).parents[2] / "examples" / "digits" / "train.py"
DRILL = [sys.executable, "-m", "production_ml.cli.main", "drill"]


def drill(tmp_path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [*DRILL, "--dir", str(tmp_path / "drill"), *options]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)


def test_the_digits_example_survives_what_needs_no_word_of_its_own(tmp_path):
    options = [
        "--seed",
        "11",
        "--faults",
        "bit-flip,oom",
        "--json",
        "--html",
        str(tmp_path / "page.html"),
    ]

    done = drill(tmp_path, *options, str(SCRIPT), "--steps", "150", "--checkpoint-every", "10")

    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    verdicts = {verdict["fault"]: verdict for verdict in told["verdicts"]}
    assert told["unavailable"] == {}
    assert {name: verdict["is_survived"] for name, verdict in verdicts.items()} == dict.fromkeys(verdicts, True)
    assert verdicts["oom"]["detected_by"] == "worker_failed"
    assert verdicts["bit-flip"]["detected_by"] == "checkpoint_damaged"
    assert all(verdict["weights_are_equal"] and verdict["steps_lost"] == 0 for verdict in verdicts.values())
    assert "2 of 2" in (tmp_path / "page.html").read_text()
    assert [
        process
        for process in psutil.process_iter(["cmdline"])
        if str(tmp_path) in " ".join(process.info["cmdline"] or ())
    ] == []


def test_a_disk_that_is_full_for_a_while_ends_no_training(tmp_path):
    done = drill(tmp_path, "--seed", "3", "--faults", "disk-full", "--json", str(SCRIPT), "--steps", "150")

    told = json.loads(done.stdout)
    [verdict] = told["verdicts"]
    # Whether the last save finds room again is a matter of when the disk was full.
    assert verdict["detected_by"] in ("checkpoint_paused", "checkpoint_save_failed")
    assert verdict["steps_lost"] == 0, verdict


def test_a_script_that_lets_nan_into_its_weights_has_not_survived(tmp_path):
    done = drill(tmp_path, "--seed", "1", "--faults", "nan", "--json", str(SCRIPT), "--steps", "60")

    assert done.returncode == 1
    [verdict] = json.loads(done.stdout)["verdicts"]
    assert not verdict["is_survived"]
    assert "not finite" in verdict["why"]


def test_a_script_that_fails_without_faults_is_not_drilled(tmp_path):
    script = tmp_path / "train.py"
    script.write_text("raise SystemExit('no data here')")

    done = drill(tmp_path, str(script))

    assert done.returncode == 1
    assert "fails without any fault" in done.stderr
    assert "no data here" in done.stderr
    assert "Traceback" not in done.stderr


def test_wrong_words_are_named(tmp_path):
    fault = drill(tmp_path, "--faults", "kill,meteor", str(SCRIPT))
    (tmp_path / "drill").mkdir()
    (tmp_path / "drill" / "earlier").touch()
    there = drill(tmp_path, str(SCRIPT))

    assert (fault.returncode, there.returncode) == (2, 2)
    assert "meteor" in fault.stderr
    assert "slow-rank" in fault.stderr
    assert "is there already" in there.stderr
