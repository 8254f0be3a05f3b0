"""A record comes back as it was, or not at all; those of all ranks make up a manifest."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from production_ml.core.errors import DamagedCheckpointError
from production_ml.fault_tolerance.memory_copies.record import assemble, decode_record, encode_record
from production_ml.storage.hashing import hash_bytes


def test_a_record_comes_back_as_it_was(copy_of):
    record = decode_record(copy_of(7, rank=1, world_size=2).record, step=7)

    again = decode_record(encode_record(record), step=7)

    assert again == record
    assert (again.step, again.rank, again.world_size, again.metrics) == (7, 1, 2, {"loss": 0.5})


def test_a_flipped_bit_in_a_record_is_damage(copy_of, rng):
    encoded = copy_of(7).record
    place = rng.randrange(len(encoded))

    damaged = encoded[:place] + chr(ord(encoded[place]) ^ 1) + encoded[place + 1 :]

    with pytest.raises(DamagedCheckpointError, match="record of a copy does not match its hash"):
        decode_record(damaged, step=7)


def test_the_records_of_all_ranks_make_up_a_manifest(copy_of):
    records = [decode_record(copy_of(7, rank=rank, world_size=2).record, step=7) for rank in range(2)]

    manifest = assemble(records)

    assert (manifest.step, manifest.world_size, sorted(manifest.files)) == (
        7,
        2,
        ["rank-00000.safetensors", "rank-00001.safetensors"],
    )
    assert [chunk.offsets for chunk in manifest.tensors["x"].chunks] == [(0, 0), (0, 1)]


def test_records_that_leave_a_part_of_a_tensor_out_make_up_none(copy_of):
    record = decode_record(copy_of(7, rank=0, world_size=2).record, step=7)

    with pytest.raises(DamagedCheckpointError, match="is not whole"):
        assemble([record, replace(record, rank=1, part=replace(record.part, tensors={}))])


@pytest.mark.parametrize(
    "change",
    [
        {"rank": 5},
        {"step": "seven"},
        {"created_at": None},
        {"metrics": {"loss": []}},
        {"part": {}},
        {"part": {"files": {"../x": {"size_bytes": 1, "header_hash": ""}}, "tensors": {}, "rank_values": []}},
        {"something": 1},
    ],
)
def test_a_signed_record_that_makes_no_sense_is_damage(copy_of, change):
    document = {**json.loads(copy_of(7).record[32:]), **change}
    text = json.dumps(document)

    with pytest.raises(DamagedCheckpointError, match="makes no sense"):
        decode_record(hash_bytes(text.encode()) + text, step=7)


@pytest.mark.parametrize("encoded", [7, None, "", "x", "\ud800" * 40])
def test_what_is_no_record_is_damage(encoded):
    with pytest.raises(DamagedCheckpointError):
        decode_record(encoded, step=7)


def test_records_whose_state_names_a_tensor_that_none_of_them_has_make_up_none(copy_of):
    record = decode_record(copy_of(7).record, step=7)

    with pytest.raises(DamagedCheckpointError, match="not there"):
        assemble([replace(record, values={**record.values, "model": {"y": {"$tensor": "y"}}})])
