"""Content hashes: XXH3-128, which detects damage at memory speed (it does not authenticate)."""

from __future__ import annotations

from pathlib import Path

import xxhash

_CHUNK_BYTES = 1 << 20


def hash_bytes(data: bytes | memoryview) -> str:
    """The XXH3-128 digest, 32 hex digits."""
    return xxhash.xxh3_128_hexdigest(data)


def hash_file(path: Path) -> str:
    """The XXH3-128 digest of a file's content, read in pieces."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while piece := file.read(_CHUNK_BYTES):
            digest.update(piece)
    return digest.hexdigest()
