"""The dataset store keeps what it was given, and says so when it cannot."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from production_ml.core.errors import ConfigError, DamagedFileError, DatasetError
from production_ml.storage.datasets import DatasetStore, parse_reference


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
