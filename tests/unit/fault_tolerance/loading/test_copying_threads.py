"""A load takes half of torch's threads, and gives them back however it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from production_ml.fault_tolerance.loading.copying_threads import copying_threads


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize(("threads", "within"), [(1, 1), (2, 1), (5, 2), (8, 4)])
def test_half_of_the_threads_copy_and_never_none(set_threads, threads, within):
    set_threads(threads)

    with copying_threads():
        assert torch.get_num_threads() == within

    assert torch.get_num_threads() == threads


def test_threads_are_given_back_where_the_load_fails(set_threads):
    set_threads(4)

    with pytest.raises(KeyError), copying_threads():
        raise KeyError

    assert torch.get_num_threads() == 4
