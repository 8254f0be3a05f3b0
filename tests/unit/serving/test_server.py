"""What is behind a slot changes without a failed request, and stays where a change is not good."""

from __future__ import annotations

import asyncio
import shutil

import pytest

from production_ml.core.errors import InputFileError, ServingError
from production_ml.serving import ModelServer, ServerConfig
from production_ml.testing.serving import FakeRuntimes, fake_package

INFER = "/v2/models/doubler/infer"


@pytest.fixture
def packages(tmp_path):
    return [fake_package(tmp_path / f"scale-{scale}", scale=scale) for scale in (2, 3)]


def test_a_swap_under_load_fails_nothing_and_leaves_one_version_open(run, client_of, ask, runtimes, packages):
    first, second = (str(package.directory) for package in packages)

    async def scenario():
        async with client_of(first) as (server, client):
            over = asyncio.Event()
            answers = []

            async def ask_on():
                while not over.is_set():
                    answers.append(await client.post(INFER, json=ask(1, 1, 1)))

            clients = [asyncio.ensure_future(ask_on()) for _ in range(8)]
            for _ in range(10):
                assert await server.swap(first, second)
                assert await server.swap(first, first)
            over.set()
            await asyncio.gather(*clients)
            return answers, [fake.is_open for fake in runtimes.made]

    answers, still_open = run(scenario())

    assert {answer.status_code for answer in answers} == {200}
    for answer in answers:
        scale = 2 if answer.json()["model_version"] == packages[0].content_hash[:12] else 3
        assert answer.json()["outputs"][0]["data"] == [scale] * 3
    assert still_open == [*[False] * 20, True]


def test_a_request_that_was_queued_before_a_swap_is_answered_by_the_old_version(
    run, client_of, ask, runtimes, tmp_path
):
    old, new = (fake_package(tmp_path / f"scale-{scale}", scale=scale, width=-1) for scale in (2, 3))

    async def scenario():
        async with client_of(old.directory) as (server, client):
            runtimes.made[0].free.clear()
            began = len(runtimes.made[0].batches)
            before = asyncio.ensure_future(client.post(INFER, json=ask(1)))
            while len(runtimes.made[0].batches) == began:
                await asyncio.sleep(0.001)
            swapping = asyncio.ensure_future(server.swap(str(old.directory), new.directory))
            while server.slots[0].version.version != new.content_hash[:12]:
                await asyncio.sleep(0.001)
            after = await client.post(INFER, json=ask(1))
            runtimes.made[0].free.set()
            assert await swapping
            return (await before).json(), after.json()

    before, after = run(scenario())

    assert (before["outputs"][0]["data"], after["outputs"][0]["data"]) == ([2], [3])


@pytest.mark.parametrize("damage", ["another interface", "another model", "a damaged file", "no package"])
def test_a_version_that_is_no_good_does_not_come_in(run, client_of, ask, packages, tmp_path, damage):
    first, second = (package.directory for package in packages)
    if damage == "another interface":
        fake_package(second, scale=3, width=4)
    if damage == "another model":
        fake_package(second, scale=3, name="tripler")
    if damage == "a damaged file":
        (second / "scale.txt").write_text("4")
    if damage == "no package":
        shutil.rmtree(second)

    async def scenario():
        async with client_of(first) as (server, client):
            with pytest.raises((ServingError, InputFileError)):
                await server.swap(str(first), second)
            return await client.post(INFER, json=ask(1, 1, 1))

    assert run(scenario()).json()["outputs"][0]["data"] == [2, 2, 2]


def test_reload_swaps_what_has_changed_and_nothing_else(run, client_of, ask, packages, runtimes, caplog):
    first, second = (package.directory for package in packages)

    async def scenario():
        async with client_of(first, second) as (server, client):
            assert await server.reload() == []
            fake_package(second, scale=5)
            assert await server.reload() == [str(second)]
            (first / "scale.txt").write_text("damaged")
            assert await server.reload() == []
            metrics = await client.get("/metrics")
            return [slot.version.source.package.metadata["scale"] for slot in server.slots], metrics.text

    scales, metrics = run(scenario())

    assert scales == [2, 5]
    assert metrics.count("serving_queue_depth{") == 2
    assert "stays at version" in caplog.text


def test_a_batch_that_hangs_keeps_no_other_version_from_being_swapped(run, client_of, ask, runtimes, tmp_path):
    hanging, other = (fake_package(tmp_path / name, name=name, width=-1).directory for name in ("hanging", "other"))

    async def scenario():
        async with client_of(hanging, other) as (server, client):
            runtimes.made[0].free.clear()
            warm = len(runtimes.made[0].batches)
            asking = asyncio.ensure_future(client.post("/v2/models/hanging/infer", json=ask(1)))
            while len(runtimes.made[0].batches) == warm:
                await asyncio.sleep(0.001)
            fake_package(hanging, name="hanging", width=-1, scale=3)
            fake_package(other, name="other", width=-1, scale=4)
            reloading = asyncio.ensure_future(server.reload())
            while server.slots[1].version.source.package.metadata["scale"] != 4:
                await asyncio.sleep(0.001)
            fake_package(other, name="other", width=-1, scale=5)
            assert await server.swap(str(other))
            assert not asking.done()
            runtimes.made[0].free.set()
            assert (await asking).json()["outputs"][0]["data"] == [2]
            return await reloading

    assert run(scenario()) == [str(hanging), str(other)]
    assert not any(fake.is_open for fake in runtimes.made)


class StaleDisk(FakeRuntimes):
    """Loads once; then its file system is gone."""

    def load(self, name):
        if self.made:
            raise OSError("Stale file handle")
        return super().load(name)


def test_a_reload_that_the_disk_fails_is_told_and_changes_nothing(run, packages, caplog):
    directory = packages[0].directory
    server = ModelServer([directory], runtimes=StaleDisk())
    server.load()
    fake_package(directory, scale=5)

    assert run(server.reload()) == []

    assert server.slots[0].version.source.package.metadata["scale"] == 2
    assert "stays at version" in caplog.text
    assert "Stale file handle" in caplog.text


def test_a_runtime_that_cannot_be_closed_does_not_keep_its_successor_out(run, client_of, packages, runtimes, caplog):
    first, second = (str(package.directory) for package in packages)

    def fail():
        raise OSError("the device is lost")

    async def scenario():
        async with client_of(first) as (server, _):
            runtimes.made[0].close = fail
            return await server.swap(first, second)

    assert run(scenario())
    assert "the device is lost" in caplog.text


def test_a_slot_that_is_not_there_is_answered_with_those_that_are(run, client_of, packages):
    async def scenario():
        async with client_of(packages[0].directory) as (server, _):
            with pytest.raises(ServingError, match=f"Known slots: {packages[0].directory}"):
                await server.swap("digits@champion")

    run(scenario())


def test_stopping_the_app_closes_all_models(run, client_of, runtimes, packages):
    async def scenario():
        async with client_of(*[package.directory for package in packages]):
            assert all(fake.is_open for fake in runtimes.made)

    run(scenario())

    assert [fake.is_open for fake in runtimes.made] == [False, False]


def test_a_ready_file_that_cannot_be_written_is_noticed_before_the_models_are_loaded(packages, tmp_path):
    runtimes = FakeRuntimes()
    config = ServerConfig(port=0, ready_file=tmp_path / "missing" / "ready.json")

    with pytest.raises(InputFileError, match=r"ready\.json: .* directory does not exist"):
        ModelServer([packages[0].directory], config, runtimes=runtimes).run()

    assert runtimes.made == []


def test_a_server_that_is_not_loaded_is_not_ready(packages):
    server = ModelServer([packages[0].directory], ServerConfig(), runtimes=FakeRuntimes())

    assert not server.is_ready
    server.load()
    assert server.is_ready
