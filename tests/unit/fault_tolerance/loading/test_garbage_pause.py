"""No garbage is collected within the pause, and what the script had chosen holds after it."""

from __future__ import annotations

import gc

import pytest

from production_ml.fault_tolerance.loading.garbage_pause import garbage_pause


@pytest.fixture(autouse=True)
def _collecting():
    yield
    gc.enable()


@pytest.mark.parametrize("is_on", [True, False])
def test_no_collection_comes_within_it_and_the_scripts_choice_is_kept(is_on):
    (gc.enable if is_on else gc.disable)()

    with garbage_pause():
        collections = [generation["collections"] for generation in gc.get_stats()]
        kept = [[number] for number in range(10_000)]
        assert [generation["collections"] for generation in gc.get_stats()] == collections
        assert not gc.isenabled()

    assert gc.isenabled() is is_on
    assert len(kept) == 10_000


def test_collection_goes_on_where_the_load_fails():
    with pytest.raises(KeyError), garbage_pause():
        raise KeyError

    assert gc.isenabled()
