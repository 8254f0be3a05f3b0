"""Every sample once per epoch, in one order, from a position that only handing out moves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from production_ml.core.errors import ConfigError
from production_ml.training.elastic_sampler import ElasticSampler


def rest_of_epoch(sampler, workers=0):
    loader = DataLoader(range(103), batch_sampler=sampler, num_workers=workers)
    return [sample for batch in sampler.epoch(loader) for sample in batch.tolist()]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupted_epoch_goes_on_where_handing_out_stopped(workers):
    whole = rest_of_epoch(ElasticSampler(range(103), 8, seed=5))
    sampler = ElasticSampler(range(103), 8, seed=5)
    batches = sampler.epoch(DataLoader(range(103), batch_sampler=sampler, num_workers=workers))
    before = [sample for _ in range(4) for sample in next(batches).tolist()]

    resumed = ElasticSampler(range(103), 8, seed=5)
    resumed.load_state_dict(sampler.state_dict())
    after = rest_of_epoch(resumed, workers)

    assert sorted(whole) == list(range(103))
    assert before + after == whole


def test_going_back_and_skipping_amid_an_epoch_leaves_out_that_batch_alone():
    whole = rest_of_epoch(ElasticSampler(range(103), 8))
    sampler = ElasticSampler(range(103), 8)
    start = sampler.state_dict()
    handed_out = []
    for batch in sampler.epoch(DataLoader(range(103), batch_sampler=sampler)):
        handed_out.append(batch.tolist())
        if len(handed_out) == 3:
            offending = sampler.current_global_ids
            sampler.load_state_dict(start)
            sampler.skip(0, 16, 8)

    assert offending == whole[16:24]
    assert [sample for batch in handed_out[3:] for sample in batch] == whole[:16] + whole[24:]


@pytest.mark.parametrize(("length", "size", "seed"), [(102, 8, 0), (103, 9, 0), (103, 8, 1)])
def test_a_position_of_other_data_is_refused(length, size, seed):
    state = ElasticSampler(range(103), 8).state_dict()

    with pytest.raises(ConfigError, match="repeat or lose samples"):
        ElasticSampler(range(length), size, seed=seed).load_state_dict(state)


@given(skips=st.lists(st.tuples(st.integers(0, 90), st.integers(1, 13))), samples=st.integers(0, 103))
def test_the_length_is_the_number_of_batches_left(skips, samples):
    sampler = ElasticSampler(range(103), 8)
    sampler.load_state_dict({**sampler.state_dict(), "samples": samples})
    for first, count in skips:
        sampler.skip(0, first, count)

    assert len(sampler) == len(list(sampler))


def test_a_loader_with_another_order_is_refused():
    with pytest.raises(ConfigError, match="does not draw its batches from this sampler"):
        next(ElasticSampler(range(103), 8).epoch(DataLoader(range(103), batch_size=8)))


@pytest.mark.parametrize("change", [{"samples": "many"}, {"skipped": [[1, 2]]}, {"epoch": None}, {"samples": 104}])
def test_what_is_no_position_is_refused(change):
    sampler = ElasticSampler(range(103), 8)

    with pytest.raises(ConfigError, match="is no position"):
        sampler.load_state_dict({**sampler.state_dict(), **change})
    assert sampler.state_dict() == ElasticSampler(range(103), 8).state_dict()


@pytest.mark.parametrize("workers", [0, 2])
def test_several_epochs_have_all_samples_each_in_another_order(workers):
    sampler = ElasticSampler(range(103), 8)
    loader = DataLoader(range(103), batch_sampler=sampler, num_workers=workers, persistent_workers=workers > 0)

    epochs = [[sample for batch in sampler.epoch(loader) for sample in batch.tolist()] for _ in range(3)]

    assert all(sorted(epoch) == list(range(103)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
