"""What cannot be run is refused before anything starts, and a run gets a name that can name a directory."""

from __future__ import annotations

import pytest

from production_ml.core.errors import ConfigError, InputFileError
from production_ml.fault_tolerance.launcher.target import check_module, check_program, check_script, run_name


def test_a_missing_script_is_named(tmp_path):
    with pytest.raises(InputFileError, match=r"train\.py: there is no such"):
        check_script(str(tmp_path / "train.py"))


def test_a_directory_is_no_script(tmp_path):
    with pytest.raises(InputFileError, match="is a directory"):
        check_script(str(tmp_path))


def test_a_script_a_module_and_a_program_that_are_there_pass(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_training.py").touch()

    check_script("my_training.py")
    check_module("my_training")
    check_module("json.tool")
    check_program("sh")


def test_a_module_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match="no_such_package"):
        check_module("no_such_package.train")


def test_a_program_must_be_executable(tmp_path):
    (tmp_path / "train.sh").touch(mode=0o644)

    with pytest.raises(InputFileError, match=r"train\.sh"):
        check_program(str(tmp_path / "train.sh"))


@pytest.mark.parametrize(
    ("target", "is_module", "name"),
    [
        ("src/train.py", False, "train"),
        ("my training.py", False, "my-training"),
        ("shop.train", True, "shop.train"),
        ("/bin/echo", False, "echo"),
        ("...", True, "run"),
    ],
)
def test_a_run_is_named_after_its_target(target, is_module, name):
    assert run_name(target, is_module=is_module) == name
