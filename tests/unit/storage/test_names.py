"""A name that is taken is safe in a path, a URL and a reference."""

from __future__ import annotations

import pytest

from production_ml.core.errors import ConfigError
from production_ml.storage.names import check_name, safe_name


@pytest.mark.parametrize("name", ["digits", "exp-001", "2026.01_a", "a" * 100])
def test_a_plain_name_is_taken_as_it_is(name):
    assert check_name("experiment", name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", "a b", "a:1", "-rf", "é", "a\n", "a" * 101])
def test_any_other_is_refused_and_the_field_is_named(name):
    with pytest.raises(ConfigError, match="experiment = "):
        check_name("experiment", name)


@pytest.mark.parametrize("text", ["/jobs/a b", "--x", "../up", "é" * 200, "a" * 300, "", "-._"])
def test_any_text_becomes_a_name_that_is_taken(text):
    name = safe_name(text)

    assert check_name("run_id", name) == name
    assert safe_name(name) == name
