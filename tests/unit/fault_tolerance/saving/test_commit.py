"""A checkpoint appears when all ranks have written, and not at all when one has not."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from production_ml.core.errors import CheckpointWriteError
from production_ml.fault_tolerance.checkpoint_format.verification import verify_checkpoint
from production_ml.fault_tolerance.saving.commit import GivenUpError, give_up
from production_ml.fault_tolerance.saving.order import Holding
from production_ml.fault_tolerance.saving.parts import encode_failure
from production_ml.fault_tolerance.saving.patience import Patience
from production_ml.testing.clock import FakeClock


def names_in(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


@pytest.fixture
def two_ranks(directory, share_of):
    """Shares of two ranks that hold one half of a tensor each."""
    directory.begin(1, "00ff").release()
    halves = [Holding("x", "x", "F32", (4,), (2 * rank,), (2,)) for rank in range(2)]
    return [
        share_of(rank=rank, world_size=2, tensors={"x": torch.full((2,), float(rank))}, holdings=[halves[rank]])
        for rank in range(2)
    ]


def test_all_ranks_return_when_the_checkpoint_is_there(directory, two_ranks):
    with ThreadPoolExecutor(2) as pool:
        leader, follower = (pool.submit(share.carry_out) for share in two_ranks)

    assert follower.result() is None
    manifest = leader.result()
    assert directory.manifest(1) == manifest
    assert manifest.world_size == 2
    assert list(verify_checkpoint(directory, 1)) == []
    assert names_in(directory.committed(1)) == [
        "manifest.json",
        "rank-00000.safetensors",
        "rank-00001.safetensors",
    ]


def test_a_rank_that_never_writes_makes_the_save_fail_and_leaves_nothing(directory, two_ranks):
    with pytest.raises(CheckpointWriteError, match="rank 1 did not write its shard in time"):
        two_ranks[0].carry_out(Patience(0.0))

    assert names_in(directory.path) == []


def test_a_follower_whose_leader_never_commits_gives_up(two_ranks):
    with pytest.raises(CheckpointWriteError, match="not committed in time by rank 0"):
        two_ranks[1].carry_out(Patience(0.0))


def test_one_rank_that_cannot_write_fails_all(directory, two_ranks):
    (directory.incomplete(1, "00ff").path / "rank-00001.safetensors").mkdir()

    with ThreadPoolExecutor(2) as pool:
        leader, follower = (pool.submit(share.carry_out) for share in two_ranks)

    assert isinstance(follower.exception(), CheckpointWriteError)
    with pytest.raises(CheckpointWriteError, match="Rank 1 could not write its shard"):
        leader.result()
    assert names_in(directory.path) == []


def test_a_follower_learns_that_the_leader_gave_up(directory, two_ranks):
    (directory.incomplete(1, "00ff").path / "rank-00000.safetensors").mkdir()

    with ThreadPoolExecutor(2) as pool:
        # It stays as long as rank 0 goes on, and looks for the new name for that long.
        follower = pool.submit(two_ranks[1].carry_out, Patience(0.2, clock=FakeClock()))
        while not (directory.incomplete(1, "00ff").path / "rank-00001.part.json").exists():
            pass
        leader = pool.submit(two_ranks[0].carry_out)

    assert isinstance(leader.exception(), CheckpointWriteError)
    with pytest.raises(GivenUpError, match="given up by rank 0"):
        follower.result()


def test_the_checkpoint_of_an_earlier_save_of_the_same_step_is_not_taken_for_this_one(
    directory, commit_step, two_ranks
):
    commit_step(1, save_id="abcd")
    directory.abandon(directory.incomplete(1, "00ff"))

    with pytest.raises(CheckpointWriteError):
        two_ranks[1].carry_out()


def test_a_follower_that_waits_lists_the_directory_and_asks_for_no_name_that_is_not_there(
    directory, two_ranks, touched
):
    """An NFS client lists anew each time, but remembers for half a minute and more that a name was not there."""
    with touched(directory.path) as paths, pytest.raises(CheckpointWriteError, match="not committed in time"):
        two_ranks[1].carry_out(Patience(0.0))

    assert directory.path in paths
    assert not [path for path in paths if path.is_relative_to(directory.committed(1))]


def test_a_rank_that_failed_is_heard_though_one_before_it_never_answers(directory, share_of, two_ranks):
    leader = share_of(rank=0, world_size=3, tensors={})
    leader.order.written.write_part(2, encode_failure("No space left on device"))

    with pytest.raises(CheckpointWriteError, match="Rank 2 could not write its shard: No space left"):
        leader.carry_out()


def test_a_failed_save_leaves_the_one_before_it_as_it_was(directory, share_of, commit_step):
    commit_step(1)

    with pytest.raises(CheckpointWriteError, match="could not be written"):
        share_of(2).carry_out()  # nobody made its directory

    assert directory.steps() == [1]
    assert list(verify_checkpoint(directory, 1)) == []


def test_state_that_differs_by_rank_is_kept_in_rank_order(directory, share_of):
    directory.begin(1, "00ff").release()
    shares = [
        share_of(rank=rank, world_size=2, tensors={f"rank-{rank}.seed": torch.ones(1)}, rank_values={"seed": rank})
        for rank in range(2)
    ]

    with ThreadPoolExecutor(2) as pool:
        for outcome in [pool.submit(share.carry_out) for share in shares]:
            outcome.result()

    assert directory.manifest(1).rank_values == ({"seed": 0}, {"seed": 1})
    assert list(verify_checkpoint(directory, 1)) == []


def test_a_rank_without_tensors_writes_no_shard(directory, share_of):
    directory.begin(1, "00ff").release()

    share_of(1, tensors={}).carry_out()

    assert names_in(directory.committed(1)) == ["manifest.json"]


def test_a_rank_that_gives_up_is_heard_by_the_others(directory, two_ranks):
    leader, follower = two_ranks
    give_up(follower.order, CheckpointWriteError("it was killed."))
    with pytest.raises(CheckpointWriteError, match="Rank 1 could not write its shard: it was killed"):
        leader.carry_out()
    assert names_in(directory.path) == []

    directory.begin(1, "00ff").release()
    give_up(leader.order, OSError(5, "Input/output error"))
    assert names_in(directory.path) == []
    give_up(follower.order, KeyError("gone"))  # there is nobody to hear it, and that is no error
