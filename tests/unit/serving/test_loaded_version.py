"""A version that is served was seen to work, and answers its queue before it is closed."""

from __future__ import annotations

import asyncio
import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from production_ml.core.errors import ServingError
from production_ml.mlops.model_package import TensorSpec
from production_ml.serving.batching import BatchingConfig
from production_ml.serving.loaded_version import load_version
from production_ml.serving.metrics import ServingMetrics
from production_ml.serving.references import ModelVersion
from production_ml.testing.serving import FakeRuntime, FakeRuntimes, fake_package


class SlowClock:
    """A full batch takes as long as it is told."""

    def __init__(self, step_seconds: float) -> None:
        self.now = 0.0
        self.step_seconds = step_seconds

    def wall_seconds(self) -> float:
        return self.now

    def monotonic_seconds(self) -> float:
        self.now += self.step_seconds
        return self.now


@pytest.fixture
def load(runtimes, tmp_path):
    def make(changes=None, clock=None, **described):
        package = dataclasses.replace(fake_package(tmp_path / "package", **described), **(changes or {}))
        options = {} if clock is None else {"clock": clock}
        config = BatchingConfig(max_batch_size=8)
        source = ModelVersion(package=package, version="1")
        return load_version(source, config, runtimes, metrics=ServingMetrics(lambda: ()), **options)

    return make


def test_the_first_request_meets_a_model_that_has_run_alone_and_full(load, runtimes):
    load()

    assert set(runtimes.made[0].batches) == {1, 8}


@pytest.mark.parametrize(("seconds", "in_loop"), [(0.0001, True), (0.01, False)])
def test_only_a_model_that_is_quick_runs_in_the_event_loop(load, seconds, in_loop):
    assert load(clock=SlowClock(seconds)).in_loop is in_loop


def test_a_model_whose_rows_may_be_of_any_size_never_runs_in_the_event_loop(load):
    assert load(width=-1, clock=SlowClock(0.0)).in_loop is False


def test_closing_answers_what_is_queued_first(run, load, runtimes):
    version = load(width=-1)
    runtimes.made[0].free.clear()

    async def scenario():
        answers = [version.submit({"x": np.ones((1, 2), "f4")}, 1) for _ in range(20)]
        closing = asyncio.ensure_future(version.close())
        await asyncio.sleep(0)
        assert runtimes.made[0].is_open
        runtimes.made[0].free.set()
        await closing
        return [answer.done() for answer in answers]

    assert all(run(scenario()))
    assert not runtimes.made[0].is_open


def spec(**changes) -> TensorSpec:
    return dataclasses.replace(TensorSpec(name="y", datatype="FP32", shape=(-1, 3)), **changes)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"inputs": (spec(name="x", datatype="BYTES"),)}, "x is BYTES; what can be served is"),
        ({"inputs": (spec(name="x", shape=(1, 3)),)}, "whose first dimension is fixed"),
        ({"outputs": (spec(shape=(8,)),)}, "whose first dimension is fixed"),
        ({"outputs": (spec(datatype="FP64"),)}, r"answers .*FP32 \[1, 3\].* the package says .*FP64"),
        ({"outputs": (spec(shape=(-1, 4)),)}, "the package says"),
        ({"outputs": (spec(), spec(name="z"))}, "the package says"),
    ],
)
def test_a_model_that_is_not_what_its_package_says_is_not_served(load, runtimes, changes, problem):
    with pytest.raises(ServingError, match=problem):
        load(changes)

    assert not any(fake.is_open for fake in runtimes.made)


class BrokenRuntimes(FakeRuntimes):
    def load(self, name):
        class Broken(FakeRuntime):
            def run(self, inputs):
                raise RuntimeError("no kernel for this device")

        return Broken


def test_a_model_that_does_not_run_is_not_served(tmp_path):
    source = ModelVersion(package=fake_package(tmp_path), version="1")

    with pytest.raises(ServingError, match="does not run: no kernel for this device"):
        load_version(source, BatchingConfig(), BrokenRuntimes(), metrics=ServingMetrics(lambda: ()))


def test_a_model_that_needs_rows_of_some_size_is_served_with_a_warning(tmp_path, caplog):
    source = ModelVersion(package=fake_package(tmp_path, width=-1), version="1")

    load_version(source, BatchingConfig(), BrokenRuntimes(), metrics=ServingMetrics(lambda: ()))

    assert "could not be warmed up" in caplog.text


def test_a_version_is_loaded_outside_of_the_event_loop(load):
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(load).result().version == "1"
