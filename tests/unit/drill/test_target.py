"""A target is checked before anything is started."""

from __future__ import annotations

import pytest

from production_ml.core.errors import ConfigError, InputFileError
from production_ml.drill.target import Target


def test_a_missing_script_is_named(tmp_path):
    with pytest.raises(InputFileError, match=r"nosuch\.py"):
        Target(script=tmp_path / "nosuch.py", started_in=tmp_path)


def test_there_must_be_a_worker(tmp_path):
    script = tmp_path / "train.py"
    script.touch()

    with pytest.raises(ConfigError, match="at least 1 worker"):
        Target(script=script, workers=0, started_in=tmp_path)


def test_an_argument_may_name_the_directory_that_the_drill_was_started_in(tmp_path):
    script = tmp_path / "train.py"
    script.touch()
    target = Target(script=script, arguments=("--data", "{cwd}/data.csv"), started_in=tmp_path)

    command = target.command(tmp_path / "run")

    assert command[-3:] == [str(script), "--data", f"{tmp_path}/data.csv"]
