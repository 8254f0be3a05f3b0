"""Real S3 servers that die, lie, refuse and are cut off while checkpoints are saved and loaded: none is ever wrong."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

from production_ml.core.errors import CheckpointError, DamagedCheckpointError
from production_ml.core.retry import RetryPolicy
from production_ml.fault_tolerance.checkpoint_format.manifest import FileEntry, Manifest
from production_ml.fault_tolerance.checkpoint_format.object_directory import ObjectCheckpointDirectory
from production_ml.storage.base import ObjectStore
from production_ml.storage.hashing import hash_bytes
from production_ml.storage.s3 import S3Store
from production_ml.testing.s3_servers import BUCKET, S3Server, s3rver_server
from production_ml.testing.stores import StaleListing
from production_ml.testing.tcp_proxy import Cut, Delay, Do, SlowDown, TcpProxy

pytestmark = pytest.mark.services

PART_BYTES = 5 << 20
SHARD_BYTES = (PART_BYTES + 70_001, 50_003)
"""Of rank 0, which goes up in parts, and of rank 1."""
ROUNDS = int(os.environ.get("PRODUCTION_ML_OBJECT_STORE_ROUNDS", "5"))
PROGRAM = Path(__file__).parents[2] / ".services/node_modules/.bin/s3rver"

# A trainer that saves step after step until it is killed.
SAVES_FOR_EVER = """
import sys
from production_ml.fault_tolerance.checkpoint_format.manifest import FileEntry, Manifest
from production_ml.fault_tolerance.checkpoint_format.object_directory import ObjectCheckpointDirectory
from production_ml.storage.hashing import hash_bytes
from production_ml.storage.s3 import S3Store
directory = ObjectCheckpointDirectory(S3Store(sys.argv[1], part_bytes=5 << 20))
for step in range(1, 1000):
    save_id = f"{step:04x}"
    directory.begin(step, save_id)
    save = directory.incomplete(step, save_id)
    data = bytes([step % 256]) * (6 << 20)
    print(step, flush=True)
    name = save.write_shard(0, memoryview(data), len(data))
    files = {name: FileEntry(size_bytes=len(data), header_hash=hash_bytes(data))}
    values = {"model": {}, "optimizer": None, "extra": {}}
    facts = dict(created_at=5.0, world_size=1, metrics={}, values=values, tensors={})
    directory.commit(save, Manifest(step=step, save_id=save_id, files=files, **facts))
"""


PATIENT = 1000
"""So many tries that the time alone counts: a server takes as long to come back as the machine is busy."""


def store_at(url: str, tries: int = PATIENT) -> S3Store:
    policy = RetryPolicy(tries=tries, first_pause_seconds=0.05, longest_pause_seconds=0.5, budget_seconds=180.0)
    return S3Store(url, retry_policy=policy, part_bytes=PART_BYTES)


@dataclass
class Run:
    """A training's checkpoints, and what they should hold."""

    directory: ObjectCheckpointDirectory
    rng: Random
    written: dict[int, list[bytes]] = field(default_factory=dict)

    def save(self, step: int) -> None:
        """What the ranks of a save do, in one process."""
        save_id = secrets.token_hex(4)
        self.written[step] = [self.rng.randbytes(size) for size in SHARD_BYTES]
        save = self.directory.incomplete(step, save_id)
        try:
            self.directory.begin(step, save_id)
            files = {
                save.write_shard(rank, memoryview(data), len(data)): FileEntry(
                    size_bytes=len(data), header_hash=hash_bytes(data)
                )
                for rank, data in enumerate(self.written[step])
            }
            save.write_part(1, b"{}")
            values = {"model": {}, "optimizer": None, "extra": {}}
            facts = {"created_at": 5.0, "world_size": 2, "metrics": {}, "values": values, "tensors": {}}
            self.directory.commit(save, Manifest(step=step, save_id=save_id, files=files, **facts))
        except BaseException:
            self._abandon(step, save_id)
            raise

    def _abandon(self, step: int, save_id: str) -> None:
        try:
            self.directory.abandon(self.directory.incomplete(step, save_id))
        except OSError:
            return

    def load_newest(self, directory: ObjectCheckpointDirectory | None = None) -> tuple[int, list[str]]:
        """The newest step whose every byte is as its manifest says, and what was wrong with newer ones."""
        directory = directory or self.directory
        damage: list[str] = []
        for step in reversed(directory.steps()):
            try:
                shards = [read(directory, step, file, entry) for file, entry in directory.manifest(step).files.items()]
            except DamagedCheckpointError as error:
                damage.append(str(error))
                continue
            assert shards == self.written[step], f"step {step} was loaded wrong"
            return step, damage
        return 0, damage


def read(directory: ObjectCheckpointDirectory, step: int, file: str, entry: FileEntry) -> bytes:
    """A shard, verified."""
    source = directory.source(step, file)
    try:
        data = bytearray(entry.size_bytes)
        count = source.readinto(0, memoryview(data))
        if count != source.size_bytes or count != entry.size_bytes or hash_bytes(data) != entry.header_hash:
            raise DamagedCheckpointError(source.name, "does not match its hash", step=step)
        return bytes(data)
    finally:
        source.close()


@pytest.fixture(params=["moto", "s3rver"])
def server(request: pytest.FixtureRequest) -> S3Server:
    found: S3Server = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[S3Server]:
    """A server of this test alone, which keeps what it has over a kill."""
    server = s3rver_server(PROGRAM, tmp_path)
    yield server
    server.kill()


@pytest.fixture
def run_at(use_s3: Callable[[str], None], tmp_path: Path, rng: Random) -> Callable[[str], Run]:
    def make(endpoint: str, tries: int = PATIENT) -> Run:
        use_s3(endpoint)
        return Run(ObjectCheckpointDirectory(store_at(f"s3://{BUCKET}/{tmp_path.name}", tries)), rng)

    return make


def random_fault(rng: Random) -> Cut | SlowDown | Delay:
    kinds = (SlowDown(), Delay(0.01), Cut(rng.randrange(2000)), Cut(rng.randrange(2000, 6_000_000)))
    return rng.choice(kinds)


def test_saves_and_loads_over_a_bad_network_are_whole(server, run_at, rng):
    with TcpProxy(server.port) as proxy:
        run = run_at(proxy.url)
        for step in range(1, ROUNDS + 1):
            proxy.inject(*(random_fault(rng) for _ in range(rng.randrange(1, 6))))
            run.save(step)
            proxy.inject(*(random_fault(rng) for _ in range(rng.randrange(1, 4))))

            assert run.load_newest() == (step, [])

        assert len(proxy.suffered) >= ROUNDS


def test_a_network_that_stays_away_fails_the_save_and_spares_the_one_before(server, run_at, rng):
    healthy = run_at(server.url)
    healthy.save(1)
    for step in range(2, ROUNDS):
        with TcpProxy(server.port) as proxy:
            cut_off = run_at(proxy.url, tries=2)
            after_bytes = rng.randrange(4_000_000)
            proxy.inject(Cut(after_bytes), *[Cut(0)] * 200)
            with pytest.raises(OSError):  # noqa: PT011 - which of a connection's deaths it is, is chance
                cut_off.save(step)
        run_at(server.url)

        assert healthy.load_newest() == (1, [])
        assert ObjectCheckpointDirectory(healthy.directory.store).steps() == [1]


def test_a_server_that_is_killed_and_comes_back_during_a_save_takes_it_to_its_end(mortal, run_at, rng):
    with TcpProxy(mortal.port) as proxy:
        run = run_at(proxy.url)
        run.save(1)
        for step in range(2, 5):
            restart = threading.Thread(target=mortal.start)
            proxy.inject(Do(lambda restart=restart: (mortal.kill(), restart.start()), rng.randrange(5_000_000)))
            run.save(step)
            restart.join()

            assert run.load_newest() == (step, [])


def test_a_server_that_is_killed_for_good_during_a_save_has_the_one_before_when_it_is_back(mortal, run_at, rng):
    with TcpProxy(mortal.port) as proxy:
        run = run_at(proxy.url, tries=3)
        run.save(1)
        for step in range(2, 5):
            death = Do(mortal.kill, after_bytes=rng.randrange(5_000_000))
            proxy.inject(death)
            with pytest.raises((OSError, CheckpointError)):
                run.save(step)
            mortal.start()

            assert death.is_done
            assert run.load_newest() == (1, [])


def test_a_server_that_is_killed_and_comes_back_during_a_load_costs_no_byte(mortal, run_at, rng):
    with TcpProxy(mortal.port) as proxy:
        run = run_at(proxy.url)
        run.save(1)
        restart = threading.Thread(target=mortal.start)
        proxy.inject(Do(lambda: (mortal.kill(), restart.start()), rng.randrange(10_000)))

        assert run.load_newest() == (1, [])
        restart.join()


def test_a_listing_that_lags_does_not_hide_the_newest(server, run_at):
    run = run_at(server.url)
    stale = StaleListing(run.directory.store)
    run.save(1)
    stale.refresh()
    run.save(2)
    run.save(3)

    resumed = ObjectCheckpointDirectory(stale)

    assert run.load_newest(resumed) == (3, [])
    assert resumed.steps() == [1, 2, 3]


def test_a_flipped_bit_or_a_lost_end_anywhere_in_the_store_is_never_loaded(server, run_at, rng):
    run = run_at(server.url)
    run.save(1)
    run.save(2)
    store = run.directory.store
    keys = [found.key for found in store.listing("step-00000002")]
    for number in range(ROUNDS * 2):
        key = keys[number % len(keys)]
        good = store.get(key)
        store.put(key, [damaged(good, rng)])

        step, damage = run.load_newest()

        assert step == 1
        assert key in damage[0]
        store.put(key, [good])
    assert run.load_newest() == (2, [])


def damaged(data: bytes, rng: Random) -> bytes:
    if rng.random() < 0.3:
        return data[: rng.randrange(1, len(data))]
    flipped = bytearray(data)
    flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(flipped)


def test_a_missing_shard_is_damage_and_its_checkpoint_is_put_aside(server, run_at):
    run = run_at(server.url)
    run.save(1)
    run.save(2)
    store = run.directory.store
    doomed = next(found.key for found in store.listing("step-00000002") if found.key.endswith("rank-00001.safetensors"))
    store.delete([doomed])

    step, damage = run.load_newest()
    assert (step, len(damage)) == (1, 1)
    assert "missing" in damage[0]
    run.directory.quarantine(2, {"damage": damage})

    assert run.load_newest() == (1, [])


def test_a_trainer_that_is_killed_leaves_whole_checkpoints_and_nothing_that_the_next_cannot_clear(
    moto, use_s3, tmp_path, rng
):
    use_s3(moto.url)
    url = f"s3://{BUCKET}/{tmp_path.name}"
    command = [sys.executable, "-c", SAVES_FOR_EVER, url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout is not None
        for _ in range(rng.randrange(2, 5)):
            trainer.stdout.readline()
        # It is somewhere in its next upload.
        threading.Event().wait(rng.random() * 0.1)
        trainer.kill()
    directory = ObjectCheckpointDirectory(store_at(url))

    steps = directory.steps()
    directory.remove_leftovers()

    assert steps
    assert directory.steps() == steps
    for step in steps:
        for file, entry in directory.manifest(step).files.items():
            assert set(read(directory, step, file, entry)) == {step}
    folders = {found.key.split("/")[0] for found in directory.store.listing("")} - {"latest.json"}
    assert folders == {f"step-{step:08d}" for step in steps}
    assert unfinished(directory.store) == []


def unfinished(store: ObjectStore) -> list[object]:
    assert isinstance(store, S3Store)
    page = store._file_system.call_s3("list_multipart_uploads", Bucket=BUCKET, Prefix=store._prefix)
    return list(page.get("Uploads", []))
