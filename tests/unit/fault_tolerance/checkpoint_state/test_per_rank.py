"""Each rank gets its own state back; where their number changed, nobody guesses and all states are handed over."""

from __future__ import annotations

import json
import random

import pytest
import torch
from torch import nn

from production_ml.core.errors import CheckpointMismatchError, CheckpointWriteError, ConfigError
from production_ml.fault_tolerance.checkpoint_format.boxes import whole
from production_ml.fault_tolerance.checkpoint_format.manifest import Manifest, TensorEntry
from production_ml.fault_tolerance.checkpoint_format.tensor_types import DTYPE_NAMES
from production_ml.fault_tolerance.checkpoint_state.capture import capture
from production_ml.fault_tolerance.checkpoint_state.per_rank import PerRank, RankStates
from production_ml.fault_tolerance.checkpoint_state.random_state import RandomState
from production_ml.fault_tolerance.checkpoint_state.restoring import plan_restoration

MODEL = nn.Linear(1, 1)


class Loader:
    """A data loader's worker positions, as far as checkpoints are concerned."""

    def __init__(self, position: int = -1) -> None:
        self.position = position

    def state_dict(self):
        return {"position": torch.tensor(self.position)}

    def load_state_dict(self, state):
        if state["position"] < -1:
            raise ValueError("a negative position")
        self.position = int(state["position"])


class SharingLoader(Loader):
    """One that knows how to go on after another number of ranks."""

    def load_rank_states(self, states, *, rank, world_size):
        self.position = sum(int(state["position"]) for state in states) + 1000 * rank + world_size


def saved(*of_ranks, random_state: bool = False):
    """A checkpoint to which each rank gave these extras."""
    captures = [
        capture(MODEL, None, extra, rank=rank, random_state=random_state) for rank, extra in enumerate(of_ranks)
    ]
    tensors = dict(captures[0].tensors)
    for one in captures:
        assert not tensors.keys() & one.rank_tensors.keys()
        tensors |= one.rank_tensors
    manifest = Manifest(
        step=1,
        save_id="a",
        created_at=0.0,
        world_size=len(of_ranks),
        metrics={},
        values=captures[0].values,
        rank_values=tuple(json.loads(json.dumps([one.rank_values for one in captures], allow_nan=False))),
        files={},
        tensors={
            name: TensorEntry(dtype=DTYPE_NAMES[tensor.dtype], shape=tuple(tensor.shape), chunks=())
            for name, tensor in tensors.items()
        },
    )
    return manifest, {name: tensor.detach().clone() for name, tensor in tensors.items()}


def load(checkpoint, rank: int, world_size: int, **extra):
    manifest, tensors = checkpoint
    plan = plan_restoration(manifest, nn.Linear(1, 1), None, extra, rank=rank, world_size=world_size)
    return plan.apply({name: tensors[name] for name in plan.boxes})


def test_each_rank_gets_its_own_value_and_its_own_object_back():
    checkpoint = saved(
        *({"loader": PerRank(Loader(rank)), "shard": PerRank([rank, "a"]), "epoch": 7} for rank in (0, 1))
    )
    loaders = [Loader(), Loader()]

    found = [load(checkpoint, rank, 2, loader=loaders[rank]) for rank in (0, 1)]

    assert [loader.position for loader in loaders] == [0, 1]
    assert [extras["shard"] for extras in found] == [[0, "a"], [1, "a"]]
    assert [extras["epoch"] for extras in found] == [7, 7]
    assert [extras["loader"] for extras in found] == loaders


def test_what_a_rank_has_of_its_own_is_written_whole_under_names_of_its_own():
    captured = capture(MODEL, None, {"loader": PerRank({"seen": torch.arange(3)})}, rank=2, random_state=False)

    [(key, piece)] = captured.own_pieces().items()

    assert key == piece.name == "rank-2.extra.loader/seen"
    assert (piece.shape, piece.box, piece.data.tolist()) == ((3,), whole((3,)), [0, 1, 2])


def test_a_rank_reads_no_other_ranks_state():
    manifest, _ = saved(*({"loader": PerRank(Loader(rank))} for rank in range(3)), random_state=True)

    boxes = plan_restoration(manifest, nn.Linear(1, 1), None, {}, rank=1, world_size=3).boxes

    assert {name for name in boxes if name.startswith("rank-")} == {
        name for name in manifest.tensors if name.startswith("rank-1.")
    }


def test_with_another_number_of_ranks_all_states_are_handed_over_and_nothing_is_loaded(caplog):
    checkpoint = saved(*({"loader": PerRank(Loader(rank))} for rank in range(3)))
    loader = Loader()

    states = load(checkpoint, 0, 2, loader=PerRank(loader))["loader"]

    assert isinstance(states, RankStates)
    assert [int(state["position"]) for state in states] == [0, 1, 2]
    assert loader.position == -1
    [warning] = [record for record in caplog.records if record.event == "rank_state_not_loaded"]
    assert "state['loader'] holds the states of all of them" in warning.message


def test_the_list_keeps_the_place_of_a_rank_that_had_no_such_state():
    checkpoint = saved({}, {"part": PerRank(5)})

    assert load(checkpoint, 0, 1)["part"] == [None, 5]


def test_an_object_that_can_share_states_out_anew_is_loaded_at_any_number_of_ranks():
    checkpoint = saved(*({"loader": PerRank(SharingLoader(rank))} for rank in range(3)))
    loaders = [SharingLoader(), SharingLoader()]

    for rank in (0, 1):
        load(checkpoint, rank, 2, loader=loaders[rank])

    assert [loader.position for loader in loaders] == [5, 1005]


def test_random_generators_are_saved_unasked_and_come_back_after_everything_else():
    class Drawing(Loader):
        def load_state_dict(self, state):
            random.random()
            torch.rand(1)

    checkpoint = saved({"loader": PerRank(Drawing(1))}, random_state=True)
    expected = random.random(), torch.rand(1).item()

    found = load(checkpoint, 0, 1, loader=Drawing())

    assert (random.random(), torch.rand(1).item()) == expected
    assert list(found) == ["loader"]


def test_random_state_may_be_left_alone():
    manifest, tensors = saved({}, random_state=True)
    model = nn.Linear(1, 1)
    torch.manual_seed(3)
    expected = torch.get_rng_state()

    plan_restoration(manifest, model, None, {}, random_state=False).apply(tensors)

    assert torch.equal(torch.get_rng_state(), expected)


def test_a_random_state_given_as_an_extra_is_each_ranks_own():
    torch.manual_seed(1)
    first = capture(MODEL, None, {"dice": RandomState()}, rank=0, random_state=False)

    assert "dice" not in first.values["extra"]
    assert list(first.rank_values) == ["dice"]


def test_random_generators_that_cannot_be_restored_are_told_of_and_stop_nothing(caplog):
    manifest, tensors = saved({}, random_state=True)
    tensors["rank-0.random/torch"] = torch.zeros(3, dtype=torch.uint8)
    state = RandomState().state_dict()

    load((manifest, tensors), 0, 1)

    assert "The random generators were not restored" in caplog.text
    RandomState().load_state_dict(state)


@pytest.mark.parametrize(
    ("extra", "rank", "error", "message"),
    [
        ({"epoch": PerRank(Loader())}, 0, CheckpointMismatchError, "no 'epoch' of each rank"),
        ({"part": Loader()}, 0, CheckpointMismatchError, "Rank 0 saved no 'part'"),
        ({"part": PerRank(3)}, 1, ConfigError, r"state\[name\]"),
        ({"loader": Loader()}, 1, CheckpointMismatchError, "'loader' does not take the state.*a negative position"),
    ],
)
def test_an_extra_that_does_not_fit_is_refused_by_name(extra, rank, error, message):
    checkpoint = saved(
        {"epoch": 1, "loader": PerRank(Loader(0))}, {"part": PerRank(1), "loader": PerRank(Loader(-2)), "epoch": 1}
    )

    with pytest.raises(error, match=message):
        load(checkpoint, rank, 2, **extra)


def test_what_cannot_be_saved_is_named_with_its_rank():
    with pytest.raises(CheckpointWriteError, match=r"rank-3\.extra\.odd is a object"):
        capture(MODEL, None, {"odd": PerRank(object())}, rank=3)
