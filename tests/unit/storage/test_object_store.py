"""A store that fsspec reaches fails in our words, and only after it was asked again."""

from __future__ import annotations

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from production_ml.core.retry import RetryPolicy
from production_ml.storage.object_store import FsspecStore


class FlakyFileSystem(MemoryFileSystem):
    """Breaks the connection of so many uploads."""

    protocol = "flaky"
    failures = 0

    def pipe_file(self, path, value, **kwargs):
        if FlakyFileSystem.failures:
            FlakyFileSystem.failures -= 1
            raise ConnectionResetError(104, "Connection reset by peer")
        super().pipe_file(path, value, **kwargs)


@pytest.fixture
def store(tmp_path):
    fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)
    return FsspecStore(f"flaky://{tmp_path.name}", retry_policy=RetryPolicy(tries=3, first_pause_seconds=0.0))


def test_an_upload_that_fails_for_a_while_is_made_again(store):
    FlakyFileSystem.failures = 2

    store.put("a", [b"one", b"two"])

    assert store.get("a") == b"onetwo"


def test_an_upload_that_goes_on_failing_leaves_nothing(store):
    FlakyFileSystem.failures = 3

    with pytest.raises(ConnectionResetError, match="reset by peer"):
        store.put("a", [b"one"])

    assert store.listing() == []


def test_an_error_names_the_store(store):
    with pytest.raises(FileNotFoundError) as caught:
        store.get("none")

    assert store.address in str(caught.value)
