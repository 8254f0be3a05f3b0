"""A path is a directory and a URL a store, and another process finds the same place by its URL."""

from __future__ import annotations

from pathlib import Path

import pytest

from production_ml.core.errors import ConfigError
from production_ml.fault_tolerance.checkpoint_format.directory import CheckpointDirectory
from production_ml.fault_tolerance.checkpoint_format.object_directory import ObjectCheckpointDirectory
from production_ml.fault_tolerance.checkpoint_format.places import open_place


@pytest.mark.parametrize("form", [str, Path, lambda path: f"file://{path}"], ids=["text", "path", "file URL"])
def test_a_path_is_a_directory_however_it_is_given_and_nothing_is_made(tmp_path, form):
    place = open_place(form(tmp_path / "check points"))

    assert isinstance(place, CheckpointDirectory)
    assert place.path == tmp_path / "check points"
    assert not place.path.exists()


def test_the_escapes_of_a_file_url_are_undone(tmp_path):
    place = open_place(f"file://{tmp_path}/check%20points")

    assert place.url == f"{tmp_path}/check points"


def test_a_relative_path_is_the_same_place_for_a_process_that_runs_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    url = open_place("checkpoints").url
    monkeypatch.chdir("/")

    assert open_place(url).url == str(tmp_path / "checkpoints")


def test_a_url_is_a_store_and_asks_no_server():
    place = open_place("s3://bucket/run")

    assert isinstance(place, ObjectCheckpointDirectory)
    assert open_place(place.url).url == place.url


@pytest.mark.parametrize("name", ["memory://run", "MEMORY://run"])
def test_memory_that_ends_with_this_process_is_refused_with_what_to_use_instead(name):
    with pytest.raises(ConfigError, match=r"own memory, and ends with it\nGive a path .*/dev/shm.*s3://"):
        open_place(name)


@pytest.mark.parametrize("name", ["file://checkpoints/run", "file:///run?version=1", "file:///run#1"])
def test_a_file_url_that_would_lead_elsewhere_is_refused(name):
    with pytest.raises(ConfigError, match="no file URL of this machine"):
        open_place(name)


def test_a_path_that_begins_with_the_home_sign_is_below_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))

    assert open_place("~/checkpoints").url == str(tmp_path / "checkpoints")
    assert open_place(Path("~/checkpoints")).url == str(tmp_path / "checkpoints")


@pytest.mark.parametrize("name", ["", "http://host/run", "https://host/run", "ftp://host/run", "s4://bucket/run"])
def test_what_can_keep_no_checkpoints_is_refused(name):
    with pytest.raises(ConfigError, match=r"is empty|cannot keep checkpoints|no file system"):
        open_place(name)


@pytest.mark.parametrize("name", [None, 3, ["checkpoints"]])
def test_what_is_no_name_is_refused(name):
    with pytest.raises(ConfigError, match=r"checkpoint_dir = .*must be a path, or the URL of an object store"):
        open_place(name)


def test_a_url_that_holds_a_secret_is_refused_without_telling_it():
    with pytest.raises(ConfigError) as refused:
        open_place("s3://key:hunter2@bucket/run")

    assert "hunter2" not in str(refused.value)
