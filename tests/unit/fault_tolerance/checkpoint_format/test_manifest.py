"""The manifest comes back as it was written, or not at all."""

from __future__ import annotations

import errno
import json
import math
import os
from dataclasses import replace

import pytest

from production_ml.core.errors import CheckpointError, CheckpointMismatchError, DamagedCheckpointError
from production_ml.fault_tolerance.checkpoint_format import manifest as format_
from production_ml.fault_tolerance.checkpoint_format.manifest import (
    ChunkEntry,
    FileEntry,
    Manifest,
    TensorEntry,
    decode_manifest,
    decode_summary,
    encode_manifest,
    read_manifest,
    read_save_id,
    read_summary,
    unreadable,
)

CHUNK = ChunkEntry(file="rank-00000.safetensors", key="x", offsets=(0, 2), shape=(3, 4), hashes=("ab" * 16, "ef" * 16))
REST = replace(CHUNK, key="y", offsets=(0, 0), shape=(3, 2), hashes=("cd" * 16,))
MANIFEST = Manifest(
    step=7,
    save_id="c0ffee",
    created_at=1e-05,
    world_size=2,
    metrics={"loss": math.nan, "best": -math.inf, "tiny": 1e-300},
    values={
        "model": {"x": {"$tensor": "x"}},
        "optimizer": None,
        "extra": {"text": 'a "hash": "00000000000000000000000000000000" in it \u00e4'},
    },
    rank_values=({"seed": 1}, None),
    files={"rank-00000.safetensors": FileEntry(size_bytes=100, header_hash="cd" * 16)},
    tensors={"x": TensorEntry(dtype="F32", shape=(3, 6), chunks=(CHUNK, REST))},
)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "manifest.json"
    path.write_bytes(encode_manifest(MANIFEST))
    return path


def test_a_manifest_comes_back_as_it_was_written(path):
    found = read_manifest(path, step=7)

    assert repr(found) == repr(MANIFEST)  # repr, because NaN differs from itself
    assert found.tensors == MANIFEST.tensors
    assert found.size_bytes == 100


@pytest.mark.parametrize(
    "metrics",
    [
        {},
        {"values": 1.0},
        {"loss": 0.5, "values": 1.0},
        {"loss": 0.5, "values": 1.0, "files": 2.0},
        {'loss", "values": ': math.inf},
    ],
    ids=["none", "values first", "values after another", "values between others", "values in a name"],
)
def test_a_summary_says_the_same_as_the_whole_whatever_a_metric_is_called(path, metrics):
    path.write_bytes(encode_manifest(replace(MANIFEST, metrics=metrics)))

    whole, summary = read_manifest(path, step=7), read_summary(path, step=7)

    assert summary.metrics == whole.metrics == metrics
    for name in ("step", "save_id", "created_at", "world_size", "files", "size_bytes"):
        assert getattr(summary, name) == getattr(whole, name)


@pytest.mark.parametrize("decode", [decode_manifest, decode_summary])
def test_a_damaged_manifest_is_named_as_it_was_given(decode):
    data = encode_manifest(MANIFEST)
    assert decode(data, "s3://bucket/run/manifest.json", step=7).step == 7

    with pytest.raises(DamagedCheckpointError, match=r"^s3://bucket/run/manifest\.json: ") as found:
        decode(data[:-1], "s3://bucket/run/manifest.json", step=7)

    assert (found.value.name, found.value.step) == ("s3://bucket/run/manifest.json", 7)


def test_other_tools_can_read_it_as_json(path):
    document = json.loads(path.read_text(), parse_constant=pytest.fail)

    assert document["format"] == "production_ml.checkpoint"
    assert document["metrics"]["loss"] == "NaN"


def test_a_flipped_bit_in_any_byte_is_noticed(path, rng):
    good = path.read_bytes()
    for position in range(len(good)):
        damaged = bytearray(good)
        damaged[position] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)

        for read in (read_manifest, read_summary):
            with pytest.raises(DamagedCheckpointError):
                read(path, step=7)


def test_every_truncation_and_any_tail_is_noticed(path):
    good = path.read_bytes()
    for data in (*(good[:length] for length in range(len(good))), good + b"\n", good + good):
        path.write_bytes(data)

        for read in (read_manifest, read_summary):
            with pytest.raises(DamagedCheckpointError):
                read(path, step=7)


@pytest.mark.parametrize("read", [read_manifest, read_summary])
def test_the_manifest_of_another_step_is_refused(path, read):
    with pytest.raises(DamagedCheckpointError, match="is the manifest of step 7"):
        read(path, step=8)


def test_a_missing_manifest_and_a_directory_in_its_place_are_damage(tmp_path):
    for path in (tmp_path / "absent.json", tmp_path):
        with pytest.raises(DamagedCheckpointError):
            read_manifest(path, step=7)


def test_a_newer_format_is_sound_but_not_ours_to_read(path, monkeypatch):
    monkeypatch.setattr(format_, "VERSION", 3)
    path.write_bytes(encode_manifest(MANIFEST))
    monkeypatch.setattr(format_, "VERSION", 2)

    with pytest.raises(CheckpointMismatchError, match="format version 3"):
        read_manifest(path, step=7)


def test_the_format_of_the_first_release_is_not_taken_for_damage(path, monkeypatch):
    monkeypatch.setattr(format_, "VERSION", 1)
    path.write_bytes(encode_manifest(MANIFEST))
    monkeypatch.setattr(format_, "VERSION", 2)

    with pytest.raises(CheckpointMismatchError, match="format version 1; this release reads 2"):
        read_manifest(path, step=7)


def test_missing_rights_are_not_damage(tmp_path):
    refused = unreadable(tmp_path, PermissionError(errno.EACCES, "Permission denied"), step=7)
    broken = unreadable(tmp_path, OSError(errno.EIO, "Input/output error"), step=7)

    assert isinstance(refused, CheckpointError)
    assert not isinstance(refused, DamagedCheckpointError)
    assert isinstance(broken, DamagedCheckpointError)


def test_the_id_of_the_save_is_found_in_the_head_alone(path, tmp_path):
    path.write_bytes(path.read_bytes()[:200])

    assert read_save_id(path) == "c0ffee"
    assert read_save_id(tmp_path / "absent.json") is None


def test_a_pipe_in_the_place_of_a_manifest_is_damage_and_nobody_waits_for_it(tmp_path):
    os.mkfifo(tmp_path / "manifest.json")

    for read in (read_manifest, read_summary):
        with pytest.raises(DamagedCheckpointError, match="not a regular file"):
            read(tmp_path / "manifest.json", step=7)
    assert read_save_id(tmp_path / "manifest.json") is None
