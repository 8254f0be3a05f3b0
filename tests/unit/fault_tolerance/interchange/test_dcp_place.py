"""What DCP calls a checkpoint means one step, and nothing else is guessed."""

from __future__ import annotations

from pathlib import Path

import pytest

from production_ml.core.errors import ConfigError
from production_ml.fault_tolerance.interchange.dcp_place import checked_step, named_step, place


@pytest.mark.parametrize(
    ("name", "step"),
    [
        (300, 300),
        ("300", 300),
        ("step-00000300", 300),
        (Path("/runs/a/step-00000300"), 300),
        ("/runs/a/300", 300),
        ("latest", None),
        ("step-", None),
        ("-3", None),
        ("٣", None),
        ("", None),
        (None, None),
    ],
)
def test_a_step_is_named_by_a_number_or_by_the_name_of_its_directory(name, step):
    assert named_step(name) == step


def test_a_path_names_its_own_directory_and_a_number_the_one_that_was_given(directory):
    assert place(directory, 7) == (directory, 7)
    assert place(directory, "step-00000007") == (directory, 7)

    elsewhere, step = place(directory, "/runs/a/step-00000007")

    assert (elsewhere.path, step) == (Path("/runs/a"), 7)


def test_what_names_no_step_is_refused(directory):
    with pytest.raises(ConfigError, match="checkpoint_id = 'latest': names no step"):
        place(directory, "latest")


@pytest.mark.parametrize("step", [-1, 1.0, "3", True, None])
def test_a_step_that_is_none_is_refused(step):
    with pytest.raises(ConfigError, match="step"):
        checked_step(step)
