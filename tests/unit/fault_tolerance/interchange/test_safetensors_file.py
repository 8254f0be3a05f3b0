"""Anybody's safetensors file is a model, and ours gives back all that was put into it."""

from __future__ import annotations

import pytest
import safetensors
import safetensors.torch
import torch

from production_ml.core.errors import InputFileError
from production_ml.fault_tolerance.interchange.consolidated import write_consolidated
from production_ml.fault_tolerance.interchange.foreign_state import ImportConfig
from production_ml.fault_tolerance.interchange.safetensors_file import read_safetensors


@pytest.fixture
def path(tmp_path):
    return tmp_path / "w.safetensors"


def test_a_file_of_weights_is_a_model(path):
    safetensors.torch.save_file({"module.w": torch.ones(2)}, path)

    found = read_safetensors(path, ImportConfig(strip_prefix="module."))

    assert list(found.tensors) == ["model.w"]
    assert (found.step, found.metrics, found.values["optimizer"]) == (None, {}, None)


def test_our_own_file_gives_back_all_that_was_put_into_it(saved, path):
    write_consolidated(saved, 300, path, with_optimizer=True)

    found = read_safetensors(path, ImportConfig())

    manifest = saved.manifest(300)
    assert (found.step, found.metrics, found.values) == (300, {"loss": 0.25}, manifest.values)
    assert "optimizer.exp_avg.0.weight" in found.tensors


def test_a_file_that_another_tool_has_changed_is_one_of_weights(saved, path):
    write_consolidated(saved, 300, path, with_optimizer=True)
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    safetensors.torch.save_file({"mine": torch.ones(1)}, path, metadata)

    found = read_safetensors(path, ImportConfig())

    assert list(found.tensors) == ["model.mine"]
    assert found.values["optimizer"] is None


@pytest.mark.parametrize("content", [b"", b"no safetensors file", b"\xff" * 100])
def test_what_is_no_such_file_is_bad_input_with_a_cure(path, content):
    path.write_bytes(content)

    with pytest.raises(InputFileError, match=r"is not a safetensors file.*\n.*--from"):
        read_safetensors(path, ImportConfig())


@pytest.mark.parametrize("key", ["production_ml.step", "production_ml.metrics", "production_ml.values"])
@pytest.mark.parametrize("value", ["{", "null", "[]", '"x"', '{"model": 3}'])
def test_metadata_that_makes_no_sense_does_no_harm(path, key, value):
    safetensors.torch.save_file({"w": torch.ones(1)}, path, {key: value})

    found = read_safetensors(path, ImportConfig())

    assert list(found.tensors) == ["model.w"]
    assert found.step is None or isinstance(found.step, int)
    assert isinstance(found.metrics, dict)
