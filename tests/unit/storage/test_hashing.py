"""The same bytes have the same hash however they are read, and one flipped bit has another."""

from __future__ import annotations

from production_ml.storage.hashing import hash_bytes, hash_file


def test_a_file_hashes_as_its_bytes_do_across_the_pieces_it_is_read_in(tmp_path, rng):
    content = rng.randbytes((1 << 20) * 2 + 17)
    (tmp_path / "file").write_bytes(content)

    assert hash_file(tmp_path / "file") == hash_bytes(content) == hash_bytes(memoryview(content))


def test_one_flipped_bit_changes_the_hash(rng):
    content = bytearray(rng.randbytes(4096))
    before = hash_bytes(bytes(content))
    content[rng.randrange(4096)] ^= 1 << rng.randrange(8)

    assert hash_bytes(bytes(content)) != before


def test_the_hash_is_xxh3_128_so_that_other_tools_can_check_it():
    # xxhsum -H128 of an empty file.
    assert hash_bytes(b"") == "99aa06d3014798d86001c324468d497f"
