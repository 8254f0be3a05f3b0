"""The dataset store keeps what it was given, and says so when it cannot."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from production_ml.core.errors import ConfigError, DamagedFileError, DatasetError
from production_ml.storage.datasets import DatasetStore, DatasetVersion, parse_reference


@pytest.fixture
def store(tmp_path: Path) -> DatasetStore:
    return DatasetStore(tmp_path / "store")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "digits.csv"
    path.write_text("pixel,label\n0,1\n16,2\n")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "images"
    (path / "train").mkdir(parents=True)
    (path / "train" / "0.bin").write_bytes(b"\x00" * 100)
    (path / "labels.csv").write_text("0\n")
    return path


def content_directories(store: DatasetStore) -> list[Path]:
    return list((store.root / "content").iterdir())


def damage(path: Path) -> None:
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)


def test_a_registered_file_can_be_got_back_byte_for_byte(store, table):
    registered = store.register("digits", table, "UCI digits")

    got = store.get("digits")

    assert got == registered
    assert (got.version, got.description) == (1, "UCI digits")
    assert got.path.read_bytes() == table.read_bytes()
    assert got.size_bytes == table.stat().st_size


def test_a_directory_keeps_its_tree(store, folder):
    got = store.register("images", folder)

    assert set(got.files) == {"labels.csv", "train/0.bin"}
    assert got.path == got.directory
    assert (got.path / "train" / "0.bin").read_bytes() == b"\x00" * 100


def test_the_same_content_is_the_same_version_and_is_stored_once(store, table):
    first = store.register("digits", table)
    again = store.register("digits", table, "another description")

    assert again == first
    assert len(store.list()) == 1
    assert len(content_directories(store)) == 1


def test_two_names_share_one_copy(store, table):
    one, other = store.register("one", table), store.register("other", table)

    assert one.directory == other.directory
    assert (one.version, other.version) == (1, 1)


def test_changed_content_gets_the_next_number_and_the_old_one_stays(store, table):
    first = store.register("digits", table)
    table.write_text("something else\n")
    second = store.register("digits", table)

    assert second.version == 2
    assert store.get("digits").content_hash == second.content_hash
    assert store.get("digits", 1) == first


def test_a_renamed_file_is_other_content(store, table):
    first = store.register("digits", table)
    second = store.register("digits", table.rename(table.with_name("other.csv")))

    assert first.content_hash != second.content_hash


def test_a_version_is_found_by_number_latest_or_hash_prefix(store, table):
    registered = store.register("digits", table)

    for wanted in (1, "1", "latest", registered.content_hash, registered.content_hash[:6]):
        assert store.get("digits", wanted) == registered


def test_ten_versions_are_numbered_and_not_sorted_as_text(store, table):
    for number in range(11):
        table.write_text(f"{number}\n")
        store.register("digits", table)

    assert [version.version for version in store.list()] == list(range(1, 12))
    assert store.get("digits").version == 11


@pytest.mark.parametrize("wanted", ["2", "abc", "ffffffffffff"])
def test_an_unknown_version_is_answered_with_the_known_ones(store, table, wanted):
    store.register("digits", table)

    with pytest.raises(DatasetError, match=r"Known versions: 1 \("):
        store.get("digits", wanted)


def test_an_unknown_name_is_answered_with_the_known_ones(store, table):
    store.register("digits", table)

    with pytest.raises(DatasetError, match="Known datasets: digits"):
        store.get("letters")


def test_a_flipped_bit_is_never_handed_out(store, folder):
    registered = store.register("images", folder)
    damaged = registered.directory / "train" / "0.bin"
    damage(damaged)

    with pytest.raises(DamagedFileError) as caught:
        store.get("images")

    assert caught.value.path == damaged


def test_a_lost_file_is_noticed(store, folder):
    registered = store.register("images", folder)
    (registered.directory / "labels.csv").unlink()

    with pytest.raises(DamagedFileError, match="missing"):
        store.get("images")


def test_a_manifest_that_was_edited_to_fit_the_damage_is_noticed(store, table):
    registered = store.register("digits", table)
    manifest = registered.directory.parent / "dataset.json"
    damage(manifest.parent / "data" / "digits.csv")
    edited = json.loads(manifest.read_text())
    edited["files"]["digits.csv"]["hash"] = "0" * 32
    manifest.write_text(json.dumps(edited))

    with pytest.raises(DamagedFileError, match=r"dataset\.json"):
        store.get("digits")


@pytest.fixture
def three_versions(store: DatasetStore, table: Path) -> list[DatasetVersion]:
    contents = ("one\n", "two\n", "three\n")
    return [store.register("digits", table) for content in contents if table.write_text(content)]


def test_a_lost_content_directory_takes_no_other_version_with_it(store, three_versions, table):
    shutil.rmtree(three_versions[0].directory.parent)

    assert store.get("digits", 2) == three_versions[1]
    assert store.get("digits") == three_versions[2]
    assert store.get("digits", three_versions[1].content_hash[:8]) == three_versions[1]
    with pytest.raises(DamagedFileError, match="is missing from the dataset store"):
        store.get("digits", 1)
    table.write_text("four\n")
    assert store.register("digits", table).version == 4


@pytest.mark.parametrize("manifest", [None, "", "{}", '{"files": []}', '{"files": {"a": {"hash": "0"}}}'])
def test_the_list_shows_which_version_is_damaged_beside_the_sound_ones(store, three_versions, manifest):
    path = three_versions[1].directory.parent / "dataset.json"
    path.unlink()
    if manifest is not None:
        path.write_text(manifest)

    listed = store.list()

    assert (listed[0], listed[2]) == (three_versions[0], three_versions[2])
    assert (listed[1].version, listed[1].content_hash) == (2, three_versions[1].content_hash)
    assert str(path) in listed[1].problem
    assert json.loads(json.dumps(listed[1].to_dict()))["problem"] == listed[1].problem


def test_a_lost_content_directory_comes_back_with_its_source(store, table):
    registered = store.register("digits", table)
    shutil.rmtree(registered.directory.parent)

    assert store.register("digits", table) == registered
    assert store.get("digits") == registered


def test_a_linked_directory_belongs_to_the_data(store, folder, tmp_path):
    (tmp_path / "elsewhere" / "deeper").mkdir(parents=True)
    (tmp_path / "elsewhere" / "deeper" / "1.bin").write_bytes(b"1")
    (folder / "test").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (folder / "again").symlink_to(tmp_path / "elsewhere", target_is_directory=True)

    got = store.register("images", folder)

    assert set(got.files) == {"labels.csv", "train/0.bin", "test/deeper/1.bin", "again/deeper/1.bin"}
    assert (got.path / "test" / "deeper" / "1.bin").read_bytes() == b"1"


@pytest.mark.parametrize("target", ["..", "../..", "../train", "absent", "link"])
def test_a_link_that_cannot_be_kept_is_named(store, folder, target):
    link = folder / "train" / "link"
    link.symlink_to(target)

    with pytest.raises(DatasetError, match="link") as caught:
        store.register("images", folder)

    assert str(link) in str(caught.value)
    assert store.list() == ()


def test_what_is_no_file_is_not_passed_over(store, folder):
    os.mkfifo(folder / "pipe")

    with pytest.raises(DatasetError, match="pipe: is neither a file nor a directory"):
        store.register("images", folder)


def test_registering_the_source_again_does_not_hide_damage(store, table):
    damage(store.register("digits", table).path)

    with pytest.raises(DamagedFileError):
        store.register("digits", table)


def test_stored_files_refuse_a_careless_edit(store, table):
    assert store.register("digits", table).path.stat().st_mode & 0o222 == 0


@pytest.mark.parametrize("name", ["", "../escape", "a/b", "a:1", "-flag", "a b"])
def test_a_name_that_is_no_safe_file_name_is_refused(store, table, name):
    with pytest.raises(ConfigError, match="dataset name"):
        store.register(name, table)


def test_nothing_to_register_is_an_error(store, tmp_path):
    (tmp_path / "empty").mkdir()

    for nothing in (tmp_path / "empty", tmp_path / "absent"):
        with pytest.raises(DatasetError, match="nothing to register"):
            store.register("digits", nothing)


def test_a_store_is_not_registered_in_itself(store, table):
    with pytest.raises(DatasetError, match="in itself"):
        store.register("everything", store.root.parent)


def test_registrations_at_once_lose_and_double_nothing(store, tmp_path):
    paths = [tmp_path / str(number) / "data.csv" for number in range(8)]
    for number, path in enumerate(paths):
        path.parent.mkdir()
        path.write_text(f"{number % 4}\n")

    with ThreadPoolExecutor(8) as pool:
        registered = list(pool.map(lambda path: store.register("digits", path), paths))

    assert sorted(version.version for version in store.list()) == [1, 2, 3, 4]
    assert len({version.content_hash for version in registered}) == 4
    assert len(content_directories(store)) == 4


@pytest.mark.parametrize(("reference", "expected"), [("digits", ("digits", "latest")), ("digits:3", ("digits", "3"))])
def test_a_reference_is_a_name_and_perhaps_a_version(reference, expected):
    assert parse_reference(reference) == expected


def test_a_colon_without_a_version_is_refused():
    with pytest.raises(ConfigError, match="no version"):
        parse_reference("digits:")


def test_the_store_needs_neither_torch_nor_pandas():
    code = "import production_ml.storage.datasets, sys; print({'torch', 'pandas', 'numpy'} & set(sys.modules))"

    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert loaded.stdout.strip() == "set()"
