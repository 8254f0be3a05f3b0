"""How a large object is divided into parts."""

from __future__ import annotations

import pytest

from production_ml.storage.s3 import split


@pytest.mark.parametrize(
    ("pieces", "lengths"),
    [
        ([b"0123456789"], [4, 4, 2]),
        ([b"01", b"234567", b"89"], [4, 4, 2]),
        ([b"0123", b"", b"4567"], [4, 4]),
        ([b"012"], [3]),
        ([b"", b""], [0]),
    ],
)
def test_all_parts_but_the_last_have_the_same_size_however_the_pieces_came(pieces, lengths):
    parts = [b"".join(part) for part in split(pieces, 4)]

    assert [len(part) for part in parts] == lengths
    assert b"".join(parts) == b"".join(pieces)
