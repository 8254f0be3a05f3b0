"""A manifest that somebody else wrote, with the right hash, is refused as damaged and never raises anything bare."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from production_ml.core.errors import DamagedCheckpointError
from production_ml.fault_tolerance.checkpoint_format.manifest import decode_manifest, decode_summary
from production_ml.fault_tolerance.checkpoint_format.verification import verify_checkpoint
from production_ml.storage.hashing import hash_bytes

SHARD = "rank-00000.safetensors"


def signed(document: Any) -> bytes:
    """What matches its hash, whatever it says."""
    data = json.dumps({**document, "hash": ""}).encode() + b"\n"
    return data.replace(b'"hash": ""', b'"hash": "%s"' % hash_bytes(data).encode(), 1)


@pytest.fixture
def document(directory, commit_step) -> dict[str, Any]:
    """A sound manifest, to be changed."""
    commit_step(1, tensors={"x": torch.arange(4.0)})
    return json.loads((directory.committed(1) / "manifest.json").read_bytes())


def without(*names: str) -> Callable[[dict[str, Any]], None]:
    return lambda document: [document.pop(name) for name in names] and None


def renamed(name: str) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        document["files"] = {name: document["files"][SHARD]}
        document["tensors"]["x"]["chunks"][0]["file"] = name

    return change


def with_value(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(document: Any) -> None:
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = value

    return change


def in_two_chunks(*runs: tuple[int, int]) -> Callable[[dict[str, Any]], None]:
    """With the tensor in chunks of (begin, size)."""

    def change(document: dict[str, Any]) -> None:
        whole = document["tensors"]["x"]["chunks"][0]
        document["tensors"]["x"]["chunks"] = [{**whole, "offsets": [begin], "shape": [size]} for begin, size in runs]

    return change


OF_THE_WHOLE = {
    "no version": without("version"),
    "no files": without("files"),
    "files that are a list": with_value("files", value=[]),
    "a file outside": renamed("../../rank-00000.safetensors"),
    "a file of another checkpoint": renamed("../step-00000002/rank-00000.safetensors"),
    "an absolute path": renamed("/tmp/rank-00000.safetensors"),
    "another kind of file": renamed("rank-00000.bin"),
    "a line break": renamed("rank-00000.safetensors\n"),
    "a negative size": with_value("files", SHARD, "size_bytes", value=-1),
    "a size in words": with_value("files", SHARD, "size_bytes", value="many"),
    "no ranks": with_value("world_size", value=0),
    "a moment that cannot be shown": with_value("created_at", value=1e300),
    "a metric in words": with_value("metrics", value={"loss": "good"}),
    "a metric that is too large": with_value("metrics", value={"loss": 10**400}),
}
OF_ITS_TENSORS = {
    "files without the shard": with_value("files", value={}),
    "an unknown type": with_value("tensors", "x", "dtype", value="F33"),
    "a type that is a list": with_value("tensors", "x", "dtype", value=[]),
    "no chunks": with_value("tensors", "x", "chunks", value=[]),
    "a part in no chunk": with_value("tensors", "x", "chunks", 0, "shape", value=[3]),
    "a part that is there twice and another never": in_two_chunks((0, 2), (0, 2)),
    "a part that two chunks share": in_two_chunks((0, 3), (2, 1)),
    "a chunk beyond its tensor": with_value("tensors", "x", "chunks", 0, "offsets", value=[1]),
    "a chunk before its tensor": with_value("tensors", "x", "chunks", 0, "offsets", value=[-1]),
    "a chunk of other dimensions": with_value("tensors", "x", "chunks", 0, "offsets", value=[0, 0]),
    "a shape with a fraction": with_value("tensors", "x", "shape", value=[4.0]),
    "no hashes": lambda document: document["tensors"]["x"]["chunks"][0].pop("hashes") and None,
    "no model in the state": lambda document: document["values"].pop("model") and None,
    "no optimizer in the state": lambda document: document["values"].pop("optimizer") and None,
    "no extras in the state": lambda document: document["values"].pop("extra") and None,
    "state that is no dict": with_value("values", value=None),
    "the own state of another number of ranks": with_value("rank_values", value=[{}, {}]),
    "own states that are no list": with_value("rank_values", value=None),
    "a rank's own state that names what is not there": with_value("rank_values", value=[{"y": {"$tensor": "y"}}]),
    "state that names what is not there": with_value("values", "model", value={"y": {"$tensor": "y"}}),
}


@pytest.mark.parametrize("change", OF_THE_WHOLE.values(), ids=OF_THE_WHOLE.keys())
def test_a_signed_manifest_that_makes_no_sense_is_damaged(directory, document, change):
    change(document)
    data = signed(document)
    (directory.committed(1) / "manifest.json").write_bytes(data)

    for decode in (decode_manifest, decode_summary):
        with pytest.raises(DamagedCheckpointError, match="makes no sense"):
            decode(data, "manifest.json", step=1)
    assert len(list(verify_checkpoint(directory, 1))) == 1
    assert directory.infos() == []


@pytest.mark.parametrize("change", OF_ITS_TENSORS.values(), ids=OF_ITS_TENSORS.keys())
def test_signed_tensors_that_make_no_sense_are_damage(directory, document, change):
    change(document)
    (directory.committed(1) / "manifest.json").write_bytes(signed(document))

    with pytest.raises(DamagedCheckpointError, match="makes no sense"):
        directory.manifest(1)
    assert len(list(verify_checkpoint(directory, 1))) == 1


def test_a_tensor_larger_than_any_memory_is_refused_before_memory_is_asked_for(directory, document):
    with_value("tensors", "x", "shape", value=[1 << 60])(document)
    with_value("tensors", "x", "chunks", 0, "shape", value=[1 << 60])(document)
    (directory.committed(1) / "manifest.json").write_bytes(signed(document))

    with pytest.raises(DamagedCheckpointError, match="larger than its file"):
        directory.manifest(1)


@pytest.mark.parametrize("depth", [2_000, 100_000])
def test_state_that_is_nested_without_end_is_damage(document, depth):
    marked = signed({**document, "values": {**document["values"], "model": "HERE"}})
    data = marked.replace(b'"HERE"', b"[" * depth + b"]" * depth)
    old = json.loads(marked)["hash"].encode()
    blank = data.replace(old, b"", 1)
    data = data.replace(old, hash_bytes(blank).encode(), 1)

    with pytest.raises(DamagedCheckpointError, match="makes no sense"):
        decode_manifest(data, "manifest.json", step=1)


@pytest.mark.parametrize("runs", [[(0, 2), (2, 2)], [(3, 1), (0, 3)], [(0, 0), (0, 4), (4, 0)]])
def test_chunks_that_make_up_their_tensor_are_sound_in_any_order(document, runs):
    in_two_chunks(*runs)(document)

    assert len(decode_manifest(signed(document), "manifest.json", step=1).tensors["x"].chunks) == len(runs)


def test_boxes_of_a_mesh_are_sound_and_one_that_is_moved_is_not(document):
    whole = document["tensors"]["x"]["chunks"][0]
    document["tensors"]["x"]["shape"] = [2, 2]
    cells = [{**whole, "offsets": [row, column], "shape": [1, 1]} for row in range(2) for column in range(2)]
    document["tensors"]["x"]["chunks"] = cells
    assert decode_manifest(signed(document), "manifest.json", step=1).tensors["x"].shape == (2, 2)

    cells[3]["offsets"] = [0, 1]

    with pytest.raises(DamagedCheckpointError, match="not what its chunks come to"):
        decode_manifest(signed(document), "manifest.json", step=1)


def test_a_name_below_the_id_of_a_save_is_a_shard_of_a_store(document):
    renamed("c0ffee/rank-00000.safetensors")(document)

    assert list(decode_manifest(signed(document), "manifest.json", step=1).files) == ["c0ffee/rank-00000.safetensors"]


def test_a_list_is_no_manifest():
    data = b'[{"hash": ""}]\n'
    data = data.replace(b'""', b'"%s"' % hash_bytes(data).encode())

    for decode in (decode_manifest, decode_summary):
        with pytest.raises(DamagedCheckpointError, match="makes no sense"):
            decode(data, "manifest.json", step=1)
