"""An error says what happened, what it means and what to do, and the command line can tell errors apart."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from production_ml.core import errors
from production_ml.core.errors import (
    ConfigError,
    DamagedCheckpointError,
    ExitCode,
    InputFileError,
    MissingDependencyError,
    ProductionMLError,
    UnknownPluginError,
)


def test_the_message_is_what_meaning_and_cure_each_on_a_line():
    error = ProductionMLError("the disk is full", meaning="Nothing is lost.", cure="Free some space.")

    assert str(error) == "the disk is full\nNothing is lost.\nFree some space."


def test_what_is_not_known_leaves_no_empty_line():
    assert str(ProductionMLError("the disk is full", cure="Free some space.")) == "the disk is full\nFree some space."


def test_a_bad_setting_names_field_and_value_and_is_a_value_error():
    with pytest.raises(ValueError, match="keep_last_n = 0: must be at least 1") as caught:
        raise ConfigError("keep_last_n", 0, "must be at least 1")

    assert caught.value.exit_code == ExitCode.BAD_INPUT


def test_a_missing_package_comes_with_the_command_that_brings_it():
    error = MissingDependencyError("wandb", extra="wandb", purpose="The sink 'wandb'")

    assert "pip install 'production-ml[wandb]'" in str(error)
    assert isinstance(error, ImportError)


def test_an_unknown_kind_is_answered_with_the_known_ones():
    assert str(UnknownPluginError("metric sink", "prom", ["jsonl", "prometheus"])).endswith("jsonl, prometheus")


def test_a_damaged_checkpoint_keeps_its_facts():
    error = DamagedCheckpointError("step-3/rank-0", "does not match its hash", step=3, tensor="w")

    assert (error.path, error.step, error.tensor, error.exit_code) == (Path("step-3/rank-0"), 3, "w", ExitCode.DAMAGED)
    assert str(error) == "step-3/rank-0: tensor 'w' does not match its hash"


def test_an_input_file_error_names_the_path():
    assert str(InputFileError("rules.yaml", "is no YAML")).startswith("rules.yaml: is no YAML")


def test_every_error_of_the_library_can_be_caught_as_one():
    raised = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]

    assert len(raised) > 10
    assert all(issubclass(kind, ProductionMLError) for kind in raised)


def test_an_error_keeps_its_facts_on_the_way_to_another_process():
    error = DamagedCheckpointError("shard", "is damaged", step=3, tensor="w")

    arrived = pickle.loads(pickle.dumps(error))

    assert (type(arrived), str(arrived)) == (DamagedCheckpointError, str(error))
    assert (arrived.path, arrived.step, arrived.tensor) == (Path("shard"), 3, "w")
    assert str(pickle.loads(pickle.dumps(ConfigError("step", -1, "is negative")))) == "step = -1: is negative"
