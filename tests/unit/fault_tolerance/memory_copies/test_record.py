"""A record comes back as it was, or not at all; those of all ranks make up a manifest."""

from __future__ import annotations

from dataclasses import replace

import pytest

from production_ml.core.errors import DamagedCheckpointError
from production_ml.fault_tolerance.memory_copies.record import assemble, decode_record, encode_record


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
