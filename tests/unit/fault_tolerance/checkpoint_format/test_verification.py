"""Verification finds everything that is wrong, names it, and finds nothing in what is sound."""

from __future__ import annotations

import pytest
import torch

from production_ml.fault_tolerance.checkpoint_format.verification import Damage, verify_checkpoint


@pytest.fixture
def checkpoint(directory, commit_step):
    commit_step(1, tensors={"a": torch.arange(4.0), "b": torch.ones(3)})
    return directory.committed(1)


def flip(path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_a_sound_checkpoint_has_no_damage(directory, checkpoint):
    assert list(verify_checkpoint(directory, 1)) == []


def test_all_damaged_tensors_are_named_not_only_the_first(directory, checkpoint):
    shard = checkpoint / "rank-00000.safetensors"
    flip(shard, -1)
    flip(shard, -20)

    found = list(verify_checkpoint(directory, 1))

    assert [(damage.file, damage.tensor) for damage in found] == [(str(shard), "a"), (str(shard), "b")]


@pytest.mark.parametrize("name", ["manifest.json", "rank-00000.safetensors"])
def test_a_missing_file_is_named(directory, checkpoint, name):
    (checkpoint / name).unlink()

    assert list(verify_checkpoint(directory, 1)) == [Damage(1, str(checkpoint / name), None, "the file is missing")]


def test_damage_reads_as_a_sentence():
    assert str(Damage(1, "c/s", "model.x", "is gone")) == "c/s: tensor 'model.x' is gone"
    assert str(Damage(1, "c/s", None, "the file is missing")) == "c/s: the file is missing"
