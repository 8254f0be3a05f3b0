"""Verification by several threads finds what one finds."""

from __future__ import annotations

import torch

from production_ml.fault_tolerance.checkpoint_format.verification import verify_checkpoint
from production_ml.fault_tolerance.interchange.parallel_verification import structural_problem, verify_in_parallel


def test_every_byte_of_a_sound_checkpoint_is_looked_at(cut):
    directory = cut({f"w{number}": torch.ones(number + 1) for number in range(5)})
    looked_at = []

    found = verify_in_parallel(directory, directory.manifest(1), on_bytes=looked_at.append)

    assert found == []
    assert sum(looked_at) == 4 * (1 + 2 + 3 + 4 + 5)


def test_all_damage_is_found_and_named_as_one_thread_names_it(cut, rng):
    directory = cut({f"w{number}": torch.rand(50) for number in range(6)})
    shards = sorted(directory.committed(1).glob("*.safetensors"))
    for path in shards[:4]:
        data = bytearray(path.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
    shards[4].unlink()

    found = verify_in_parallel(directory, directory.manifest(1), threads=3)

    assert found == list(verify_checkpoint(directory, 1))
    assert len(found) == 5


def test_a_missing_or_short_file_is_seen_without_reading(cut):
    directory = cut({"v": torch.ones(4), "w": torch.ones(4)})
    first, second = sorted(directory.committed(1).glob("*.safetensors"))
    manifest = directory.manifest(1)
    assert structural_problem(directory, manifest) is None

    second.write_bytes(second.read_bytes()[:-1])
    assert "bytes instead of" in structural_problem(directory, manifest)
    first.unlink()
    assert "the file is missing" in structural_problem(directory, manifest)
