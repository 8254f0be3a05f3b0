"""What is to get its state back in place must be able to take it; all else is refused by its name."""

from __future__ import annotations

import pytest
from torch import nn

from production_ml.core.errors import ConfigError
from production_ml.fault_tolerance.checkpoint_state.stateful import loadable


def test_an_object_with_a_state_is_given_back():
    target = nn.Linear(1, 1)

    assert loadable("layer", target) is target


@pytest.mark.parametrize("target", [3, {"a": 1}, None, object()])
def test_a_plain_value_is_refused_by_its_name_and_the_way_to_get_it_is_told(target):
    with pytest.raises(ConfigError, match="epoch") as refused:
        loadable("epoch", target)

    assert "state[name]" in str(refused.value)
