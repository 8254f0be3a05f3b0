"""Whoever asks gets exactly the answer to what was asked, whatever else was in the batch."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from production_ml.core.errors import ConfigError
from production_ml.serving.batching import Batcher, BatchingConfig, compute_batch
from production_ml.serving.problems import ModelFailedError, QueueFullError
from production_ml.testing.serving import POISON, FakeRuntime


def rows(*values: float) -> dict[str, np.ndarray]:
    return {"x": np.array([[value] for value in values], np.float32)}


async def until(condition) -> None:
    while not condition():
        await asyncio.sleep(0.001)


async def occupy(batcher: Batcher, runtime: FakeRuntime) -> asyncio.Future:
    """Send a request that keeps the runtime busy until `runtime.free` is set."""
    runtime.free.clear()
    first = batcher.submit(rows(0), 1)
    await until(lambda: runtime.batches)
    return first


@pytest.fixture
def batcher_of(runtime, executor):
    def make(*, in_loop: bool = False, **limits) -> Batcher:
        return Batcher(runtime.run, BatchingConfig(**limits), executor=executor, in_loop=in_loop, name="fake")

    return make


@pytest.mark.parametrize("in_loop", [True, False])
def test_each_request_gets_its_own_rows_back(run, batcher_of, in_loop):
    sizes = [1, 3, 2, 5, 1, 1, 4]

    async def scenario():
        batcher = batcher_of(in_loop=in_loop, max_batch_size=6)
        sent = [np.random.default_rng(number).random((size, 2), np.float32) for number, size in enumerate(sizes)]
        answers = await asyncio.gather(*(batcher.submit({"x": x}, len(x)) for x in sent))
        return sent, answers

    for x, (y,) in zip(*run(scenario()), strict=True):
        np.testing.assert_array_equal(y, 2 * x)


def test_what_waits_while_the_runtime_is_busy_becomes_the_next_batch(run, batcher_of, runtime):
    async def scenario():
        batcher = batcher_of(max_batch_size=4)
        first = await occupy(batcher, runtime)
        waiting = [batcher.submit(rows(number), 1) for number in range(6)]
        assert batcher.depth == 6
        runtime.free.set()
        await asyncio.gather(first, *waiting)

    run(scenario())

    assert runtime.batches == [1, 4, 2]


def test_a_lone_request_does_not_wait_for_company(run, batcher_of, runtime):
    async def scenario():
        await batcher_of(max_batch_size=32).submit(rows(1), 1)

    run(scenario())

    assert runtime.batches == [1]


def test_the_event_loop_goes_on_while_a_batch_is_computed(run, batcher_of, runtime):
    async def scenario():
        first = await occupy(batcher_of(), runtime)
        for _ in range(100):
            await asyncio.sleep(0)
        assert not first.done()
        runtime.free.set()
        await first

    run(scenario())

    assert all(name.startswith("model") for name in runtime.threads)


def test_a_model_that_is_quicker_than_a_thread_runs_in_the_loop(run, batcher_of, runtime):
    async def scenario():
        batcher = batcher_of(in_loop=True, max_batch_size=4)
        await asyncio.gather(*(batcher.submit(rows(number), 1) for number in range(9)))

    run(scenario())

    assert runtime.batches == [4, 4, 1]
    assert runtime.threads == {"MainThread"}


def test_a_request_larger_than_a_batch_is_computed_in_pieces_outside_the_loop(run, batcher_of, runtime):
    async def scenario():
        return await batcher_of(in_loop=True, max_batch_size=4).submit(rows(*range(10)), 10)

    (y,) = run(scenario())

    assert y.ravel().tolist() == [2 * number for number in range(10)]
    assert runtime.batches == [4, 4, 2]
    assert "MainThread" not in runtime.threads


@pytest.mark.parametrize("in_loop", [True, False])
def test_a_poisoned_request_fails_alone(run, batcher_of, in_loop):
    async def scenario():
        batcher = batcher_of(in_loop=in_loop)
        waiting = [batcher.submit(rows(value), 1) for value in (1, POISON, 3)]
        return await asyncio.gather(*waiting, return_exceptions=True)

    good, bad, also_good = run(scenario())

    assert (good[0].item(), also_good[0].item()) == (2, 6)
    assert isinstance(bad, ModelFailedError)
    assert "poison" in str(bad)


class Panic(BaseException):
    """What extensions in Rust raise, and no `except Exception` sees."""


@pytest.mark.parametrize("in_loop", [True, False])
def test_a_panic_of_the_runtime_fails_its_request_and_the_version_lives_on(run, executor, in_loop):
    def compute(inputs):
        if (inputs["x"] == POISON).any():
            raise Panic("index out of bounds")
        return [inputs["x"]]

    async def scenario():
        batcher = Batcher(compute, BatchingConfig(), executor=executor, in_loop=in_loop)
        with pytest.raises(ModelFailedError, match="index out of bounds"):
            await batcher.submit(rows(POISON), 1)
        answer = await batcher.submit(rows(4), 1)
        await batcher.drain()
        return answer

    assert run(scenario())[0].item() == 4


def test_a_client_that_left_is_not_computed(run, batcher_of, runtime):
    async def scenario():
        batcher = batcher_of()
        first = await occupy(batcher, runtime)
        left, stays = batcher.submit(rows(POISON), 1), batcher.submit(rows(4), 1)
        left.cancel()
        runtime.free.set()
        return await asyncio.gather(first, stays)

    _, (y,) = run(scenario())

    assert y.item() == 8
    assert runtime.batches == [1, 1]


def test_a_client_that_leaves_during_its_batch_disturbs_nobody(run, batcher_of, runtime):
    async def scenario():
        batcher = batcher_of()
        first = await occupy(batcher, runtime)
        first.cancel()
        runtime.free.set()
        return await batcher.submit(rows(4), 1)

    assert run(scenario())[0].item() == 8


def test_a_full_queue_turns_away_and_recovers(run, batcher_of, runtime):
    async def scenario():
        batcher = batcher_of(max_queue=2)
        first = await occupy(batcher, runtime)
        waiting = [batcher.submit(rows(number), 1) for number in range(2)]
        with pytest.raises(QueueFullError, match="2 requests are waiting"):
            batcher.submit(rows(9), 1)
        waiting[0].cancel()
        instead = batcher.submit(rows(5), 1)
        runtime.free.set()
        return await asyncio.gather(first, waiting[1], instead)

    assert [y.item() for (y,) in run(scenario())] == [0, 2, 10]


def test_requests_of_different_row_shapes_do_not_share_a_batch(run, batcher_of, runtime):
    async def scenario():
        batcher = batcher_of(in_loop=True)
        shapes = [(1, 3), (2, 3), (1, 5), (1, 3)]
        return await asyncio.gather(*(batcher.submit({"x": np.ones(shape, "f4")}, shape[0]) for shape in shapes))

    answers = run(scenario())

    assert [y.shape for (y,) in answers] == [(1, 3), (2, 3), (1, 5), (1, 3)]
    assert runtime.batches == [3, 1, 1]


def test_drain_returns_when_all_that_was_queued_is_answered(run, batcher_of, runtime):
    async def scenario():
        batcher = batcher_of(max_batch_size=1)
        await batcher.drain()
        waiting = [await occupy(batcher, runtime), *(batcher.submit(rows(number), 1) for number in range(5))]
        draining = asyncio.ensure_future(batcher.drain())
        await asyncio.sleep(0)
        assert not draining.done()
        runtime.free.set()
        await draining
        assert all(answer.done() for answer in waiting)

    run(scenario())


def test_rows_that_went_astray_are_an_error_and_never_another_clients_answer():
    answers = compute_batch(lambda inputs: [inputs["x"][:1]], [(rows(1), 1), (rows(2, 3), 2)], 8)

    assert answers[0][0].item() == 1
    assert "came back for 2 rows" in str(answers[1])


@pytest.mark.parametrize("limits", [{"max_batch_size": 0}, {"max_queue": 0}])
def test_limits_that_let_nothing_through_are_refused(limits):
    with pytest.raises(ConfigError, match="at least 1"):
        BatchingConfig(**limits)
