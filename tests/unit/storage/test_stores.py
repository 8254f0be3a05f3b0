"""A store is found by the scheme of its URL, and a URL that holds a secret is refused before it can be told."""

from __future__ import annotations

import pytest

from production_ml.core.errors import ConfigError, MissingDependencyError
from production_ml.storage.local import LocalStore
from production_ml.storage.object_store import FsspecStore, open_file_system
from production_ml.storage.stores import is_store_url, open_store


@pytest.mark.parametrize(("place", "is_url"), [("s3://b/x", True), ("/a/b", False), ("a/b", False), ("c:\\x", False)])
def test_a_url_is_told_from_a_path(place, is_url):
    assert is_store_url(place) is is_url


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_path_is_a_local_store(prefix, tmp_path):
    store = open_store(f"{prefix}{tmp_path}/checkpoints")

    store.put("a", [b"1"])

    assert isinstance(store, LocalStore)
    assert (tmp_path / "checkpoints" / "a").read_bytes() == b"1"


def test_a_scheme_that_is_not_in_the_table_is_asked_of_fsspec(tmp_path):
    store = open_store(f"local://{tmp_path}/checkpoints")

    assert isinstance(store, FsspecStore)


def test_a_scheme_that_nobody_knows_is_refused():
    with pytest.raises(ConfigError, match="nosuch"):
        open_store("nosuch://bucket/run")


def test_an_s3_url_without_a_bucket_is_refused():
    with pytest.raises(ConfigError, match="s3://bucket/prefix"):
        open_store("s3:///run")


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIAEXAMPLE:hunter2@bucket/run",
        "s3://bucket/run?X-Amz-Signature=hunter2",
        "https://store/run?sig=hunter2&se=2030",
        "s3://bucket/run#hunter2",
    ],
)
def test_a_url_that_holds_a_secret_is_refused_without_telling_it(url):
    with pytest.raises(ConfigError, match="neither credentials nor options") as caught:
        open_store(url)

    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in str(caught.value.value)


def test_a_package_that_is_missing_is_named_with_the_command_that_brings_it():
    with pytest.raises(MissingDependencyError, match=r"pip install 'production-ml\[gcs\]'"):
        open_file_system("gs")
