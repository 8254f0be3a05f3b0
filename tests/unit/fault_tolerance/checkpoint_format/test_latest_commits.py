"""The newest commits are found by name, and a damaged pointer costs nothing but itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from production_ml.fault_tolerance.checkpoint_format.latest_commits import LatestCommits
from production_ml.storage.local import LocalStore


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path))


def test_the_newest_sixteen_are_kept_each_once_and_the_newest_commit_first(store):
    for step in (*range(20), 7):
        LatestCommits(store).add(step)

    assert LatestCommits(store).steps() == [7, *range(19, 7, -1), 6, 5, 4]


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"steps": 3}', b'{"steps": ["x"]}', b'{"steps": [1e999]}', b"[" * 100_000, b"\xff"]
)
def test_a_damaged_pointer_says_nothing_and_is_written_anew(store, content):
    store.put("latest.json", [content])
    latest = LatestCommits(store)

    assert latest.steps() == []
    latest.add(5)
    assert latest.steps() == [5]
