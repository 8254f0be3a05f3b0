"""DCP's metadata is a pickle: what is not on the list is refused by its name, and nothing of it runs."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex

from production_ml.core.errors import InputFileError
from production_ml.fault_tolerance.interchange.dcp_metadata import location, read_dcp_metadata

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable:UserWarning")


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    types = {
        str(dtype): torch.ones(2, dtype=dtype) for dtype in (torch.bfloat16, torch.int8, torch.complex64, torch.bool)
    }
    dcp.save({"model": types, "epoch": 3, "list": [torch.ones(1), {"a": 1}]}, checkpoint_id=tmp_path / "dcp")
    return tmp_path / "dcp"


def test_what_dcp_writes_is_read_as_dcp_reads_it(directory):
    found = read_dcp_metadata(directory)

    with open(directory / ".metadata", "rb") as file:
        expected = pickle.load(file)
    assert found.state_dict_metadata == expected.state_dict_metadata
    assert found.planner_data == expected.planner_data
    assert found.storage_data == expected.storage_data


@pytest.mark.parametrize("protocol", range(2, 6))
def test_a_pickle_that_asks_for_more_is_refused_by_name_and_not_run(directory, protocol):
    metadata = read_dcp_metadata(directory)
    metadata.planner_data = Bomb(directory / "went-off")
    (directory / ".metadata").write_bytes(pickle.dumps(metadata, protocol=protocol))

    with pytest.raises(InputFileError, match=r"asks for (io|builtins|__builtin__)\.open") as raised:
        read_dcp_metadata(directory)

    assert "Nothing of it was run" in str(raised.value)
    assert not (directory / "went-off").exists()


@pytest.mark.parametrize(
    "asked",
    [
        "os\nsystem",
        "builtins\neval",
        "torch\nload",
        "torch.serialization\nload",
        "collections\nCounter",
        "torch\nSize.__class__",
    ],
)
def test_the_list_of_what_may_be_asked_for_is_closed(directory, asked):
    (directory / ".metadata").write_bytes(f"c{asked}\n.".encode())

    with pytest.raises(InputFileError, match="asks for"):
        read_dcp_metadata(directory)


def test_damage_of_any_kind_is_bad_input(directory, rng):
    data = (directory / ".metadata").read_bytes()
    for _ in range(200):
        damaged = bytearray(data)
        damaged[rng.randrange(len(data))] = rng.randrange(256)
        (directory / ".metadata").write_bytes(damaged[: rng.choice([len(data), rng.randrange(len(data))])])
        try:
            read_dcp_metadata(directory)
        except InputFileError:
            continue


@pytest.mark.parametrize("content", [b"", b"x", pickle.dumps({"a": 1}), pickle.dumps(Metadata({}))])
def test_what_is_no_metadata_is_said_to_be_none(directory, content):
    (directory / ".metadata").write_bytes(content)

    with pytest.raises(InputFileError, match=r"damaged|not the metadata"):
        read_dcp_metadata(directory)


def test_a_directory_without_metadata_is_bad_input(tmp_path):
    with pytest.raises(InputFileError, match="No such file"):
        read_dcp_metadata(tmp_path)


@pytest.mark.parametrize("path", ["/etc/passwd", "../elsewhere", "a/../../b"])
def test_a_data_file_outside_of_the_directory_is_not_opened(tmp_path, path):
    index = MetadataIndex("w", (0,))
    metadata = Metadata({}, storage_data={index: _StorageInfo(path, 0, 10)})

    with pytest.raises(InputFileError, match="outside of the directory"):
        location(metadata, tmp_path, index)
