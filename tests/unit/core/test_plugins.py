"""A plug-in family finds its own kinds and those of third parties, and says what is missing."""

from __future__ import annotations

import collections
from pathlib import Path

import pytest

from production_ml.core.errors import MissingDependencyError, UnknownPluginError
from production_ml.core.plugins import PluginFamily, PluginLocation


@pytest.fixture
def family() -> PluginFamily[object]:
    return PluginFamily(
        "toy",
        entry_points="production_ml_test.toys",
        table={
            "ordered": PluginLocation("collections:OrderedDict"),
            "absent": PluginLocation("no_such_package.kind:Kind", extra="toys"),
            "broken": PluginLocation("production_ml.no_such_module:Kind", extra="toys"),
        },
    )


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed distribution that brings the kind `theirs`, and one that wants to be `ordered`."""
    (tmp_path / "their_toys.py").write_text("class Theirs:\n    pass\n")
    info = tmp_path / "their_toys-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-toys\nVersion: 1.0\n")
    points = "theirs = their_toys:Theirs\nordered = their_toys:Theirs\n"
    (info / "entry_points.txt").write_text(f"[production_ml_test.toys]\n{points}")
    monkeypatch.syspath_prepend(tmp_path)


def test_a_kind_is_found_by_its_name(family):
    assert family.load("ordered") is collections.OrderedDict


def test_a_third_partys_kind_is_listed_checked_and_found(family, third_party):
    family.check("theirs")

    assert family.names() == ["absent", "broken", "ordered", "theirs"]
    assert family.load("theirs").__name__ == "Theirs"


def test_a_third_party_cannot_replace_a_kind_of_ours(family, third_party):
    assert family.load("ordered") is collections.OrderedDict


@pytest.mark.parametrize("ask", ["load", "check"])
def test_an_unknown_name_is_answered_with_the_known_ones(family, ask):
    with pytest.raises(UnknownPluginError, match="known kinds: absent, broken, ordered"):
        getattr(family, ask)("orderd")


def test_a_missing_package_is_answered_with_the_extra_that_brings_it(family):
    family.check("absent")

    with pytest.raises(MissingDependencyError, match=r"pip install 'production-ml\[toys\]'"):
        family.load("absent")


def test_a_fault_of_our_own_is_not_taken_for_a_missing_package(family):
    with pytest.raises(ModuleNotFoundError) as caught:
        family.load("broken")

    assert not isinstance(caught.value, MissingDependencyError)
