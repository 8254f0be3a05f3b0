"""A rank alone agrees with itself, and raises what it refuses."""

from __future__ import annotations

import pytest

from production_ml.core.errors import ConfigError
from production_ml.fault_tolerance.agreement import gather_json, refused_on_all


def test_a_rank_alone_agrees_with_itself():
    assert gather_json({"step": 1}, call="save") == [{"step": 1}]


def test_what_a_rank_refuses_is_raised_there_as_it_is():
    refusal = ConfigError("model", None, "is none")

    with pytest.raises(ConfigError) as raised, refused_on_all(call="load_latest"):
        raise refusal

    assert raised.value is refusal
