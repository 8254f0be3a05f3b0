"""What a person writes after `serve` means one thing, or is refused."""

from __future__ import annotations

import pytest

from production_ml.core.errors import ConfigError, DamagedFileError, InputFileError
from production_ml.serving.references import parse_references, resolve
from production_ml.testing.serving import fake_package


def parsed(*given: str) -> list[tuple[str, float]]:
    return [(found.reference, found.weight) for found in parse_references(given)]


def test_weights_stand_behind_references():
    assert parsed("digits@champion=80", "digits:3=20") == [("digits@champion", 80), ("digits:3", 20)]
    assert parsed("digits", "letters@challenger") == [("digits", 1), ("letters@challenger", 1)]


def test_a_path_may_hold_an_equals_sign(tmp_path):
    package = fake_package(tmp_path / "lr=0.1")

    assert parsed(f"{package.directory}=30") == [(str(package.directory), 30)]
    assert parsed(str(package.directory)) == [(str(package.directory), 1)]


def test_a_package_in_the_working_directory_needs_no_slash(tmp_path, monkeypatch):
    package = fake_package(tmp_path / "digits")
    monkeypatch.chdir(tmp_path)

    found = resolve("digits")

    assert (found.package.content_hash, found.alias) == (package.content_hash, None)
    assert package.content_hash.startswith(found.version)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ((), "at least one model"),
        (("digits=80", "digits=20"), "is there twice"),
        (("digits@champion=80", "digits@challenger"), "must all have a weight, or none"),
        (("digits=many",), "number from 0 up"),
        (("digits=-1",), "number from 0 up"),
        (("digits=nan",), "number from 0 up"),
        (("digits=",), "number from 0 up"),
        (("digits@",), "alias"),
        (("digits:newest",), "version number"),
        (("",), "model name"),
    ],
)
def test_references_without_a_meaning_are_refused(given, problem):
    with pytest.raises(ConfigError, match=problem):
        parse_references(given)


def test_a_path_without_a_package_is_named(tmp_path):
    with pytest.raises(InputFileError, match=r"model\.json: not found"):
        resolve(str(tmp_path / "nothing"))


def test_a_damaged_package_is_not_resolved(tmp_path):
    package = fake_package(tmp_path / "package")
    package.file("scale.txt").write_text("3.0")

    with pytest.raises(DamagedFileError, match="does not match its hash"):
        resolve(str(package.directory))


def test_a_link_that_moves_on_does_not_move_what_was_verified(tmp_path):
    package = fake_package(tmp_path / "release-1")
    fake_package(tmp_path / "release-2")
    (tmp_path / "current").symlink_to("release-1")

    found = resolve(str(tmp_path / "current"))
    (tmp_path / "next").symlink_to("release-2")
    (tmp_path / "next").rename(tmp_path / "current")

    assert found.package.directory == package.directory.resolve()
