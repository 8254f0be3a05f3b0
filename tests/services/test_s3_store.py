"""S3 as two servers speak it, over a network that cuts, delays and refuses."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from production_ml.core.retry import RetryPolicy
from production_ml.core.structured_logging import Event, subscribe, unsubscribe
from production_ml.storage.s3 import S3Store
from production_ml.testing.s3_servers import BUCKET, S3Server
from production_ml.testing.tcp_proxy import Cut, Delay, LoseAnswer, SlowDown, TcpProxy

pytestmark = pytest.mark.services

PART_BYTES = 5 << 20
"""The least that S3 takes."""


@pytest.fixture(params=["moto", "s3rver"])
def server(request: pytest.FixtureRequest) -> S3Server:
    found: S3Server = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def proxy(server: S3Server, use_s3: Callable[[str], None]) -> Iterator[TcpProxy]:
    with TcpProxy(server.port) as proxy:
        use_s3(proxy.url)
        yield proxy


@pytest.fixture
def store(proxy: TcpProxy, tmp_path: Path) -> S3Store:
    return store_at(f"s3://{BUCKET}/{tmp_path.name}")


def store_at(url: str, tries: int = 10, **options: int) -> S3Store:
    policy = RetryPolicy(tries=tries, first_pause_seconds=0.01, longest_pause_seconds=0.1)
    return S3Store(url, retry_policy=policy, part_bytes=PART_BYTES, **options)


@pytest.fixture
def retries() -> Iterator[list[Event]]:
    received: list[Event] = []
    subscribe(received.append)
    yield received
    unsubscribe(received.append)


def unfinished_uploads(store: S3Store) -> list[object]:
    page = store._file_system.call_s3("list_multipart_uploads", Bucket=BUCKET, Prefix=store._prefix)
    return list(page.get("Uploads", []))


def test_a_busy_server_is_asked_again_and_each_retry_is_told(store, proxy, retries):
    for ask in (
        lambda: store.put("a", [b"123"]),
        lambda: store.get("a", 1, 3),
        lambda: store.size("a"),
        lambda: store.listing(),
        lambda: store.delete(["a"]),
    ):
        retries.clear()
        proxy.suffered.clear()
        proxy.inject(SlowDown(), SlowDown())
        ask()
        assert len(proxy.suffered) == 2
        assert [event.name for event in retries].count("retry") >= 2


@pytest.mark.parametrize("after_bytes", [0, 300, 3_000_000])
def test_a_connection_that_is_cut_costs_no_byte_of_a_large_object(store, proxy, rng, after_bytes):
    data = rng.randbytes(3 * PART_BYTES + 1)

    proxy.inject(*[Cut(after_bytes)] * 3)
    store.put("large", [memoryview(data)])
    proxy.inject(*[Cut(after_bytes)] * 3)
    found = store.get("large")

    assert found == data
    assert len(proxy.suffered) >= 3


def test_a_slow_connection_is_waited_for(store, proxy):
    proxy.inject(Delay(0.2))

    store.put("a", [b"1"])

    assert store.get("a") == b"1"
    assert len(proxy.suffered) == 1


def test_an_upload_that_is_given_up_leaves_no_object_and_no_parts(moto, use_s3, tmp_path):
    with TcpProxy(moto.port) as proxy:
        use_s3(proxy.url)
        store = store_at(f"s3://{BUCKET}/{tmp_path.name}", tries=2)
        stop = [Cut(1_000_000)] * 40

        proxy.inject(*stop)
        with pytest.raises(OSError) as caught:  # noqa: PT011 - which of a connection's deaths it is, is chance
            store.put("large", [b"x" * (3 * PART_BYTES)])
        assert "Given up after 2 tries" in caught.value.__notes__[0]

    use_s3(moto.url)
    store = store_at(f"s3://{BUCKET}/{tmp_path.name}")
    assert store.listing() == []
    assert unfinished_uploads(store) == []


def test_an_upload_whose_last_answer_is_lost_is_the_object_all_the_same(moto, use_s3, tmp_path, rng):
    data = rng.randbytes(2 * PART_BYTES + 1)
    with TcpProxy(moto.port) as proxy:
        use_s3(proxy.url)
        store = store_at(f"s3://{BUCKET}/{tmp_path.name}")
        lost = LoseAnswer(b"POST /checkpoints/" + tmp_path.name.encode() + b"/large?uploadId=")

        proxy.inject(*[lost] * 40)
        store.put("large", [data])

    assert lost.is_done
    use_s3(moto.url)
    assert store_at(f"s3://{BUCKET}/{tmp_path.name}").get("large") == data


def test_what_a_killed_upload_left_is_cleared_by_age(moto, use_s3, tmp_path):
    use_s3(moto.url)
    store = store_at(f"s3://{BUCKET}/{tmp_path.name}")
    for place in (tmp_path.name, f"{tmp_path.name}-beside"):
        store._file_system.call_s3("create_multipart_upload", Bucket=BUCKET, Key=f"{place}/large")

    # For moto, every upload began in 2010.
    assert store.clear_unfinished(before=1e9) == 0
    assert store.clear_unfinished(before=time.time() + 3600) == 1
    assert len(unfinished_uploads(store)) == 1


def test_more_objects_than_fit_into_one_request_are_listed_and_deleted(moto, use_s3, tmp_path):
    use_s3(moto.url)
    store = store_at(f"s3://{BUCKET}/{tmp_path.name}", keys_per_request=2)
    keys = [f"a/{number}" for number in range(7)]
    for key in keys:
        store.put(key, [b""])

    assert [found.key for found in store.listing("a")] == keys
    store.delete(keys)
    assert store.listing() == []


def test_a_server_that_is_gone_is_an_error_within_the_budget(server, use_s3, tmp_path):
    proxy = TcpProxy(server.port)
    use_s3(proxy.url)
    proxy.close()

    with pytest.raises(OSError, match=r"[Cc]onnect") as caught:
        store_at(f"s3://{BUCKET}/{tmp_path.name}", tries=3).get("a")

    assert not isinstance(caught.value, FileNotFoundError)


def test_credentials_that_are_refused_are_told_at_once_and_not_shown(s3rver, use_s3, monkeypatch, tmp_path, caplog):
    use_s3(s3rver.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    caplog.set_level(logging.DEBUG, logger="production_ml")

    with pytest.raises(PermissionError) as caught:
        store_at(f"s3://{BUCKET}/{tmp_path.name}").put("a", [b"1"])

    assert not hasattr(caught.value, "__notes__")
    assert "hunter2" not in str(caught.value) + caplog.text


def test_missing_credentials_are_told_at_once(s3rver, use_s3, monkeypatch, tmp_path):
    use_s3(s3rver.url)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)

    with pytest.raises(PermissionError, match="credentials"):
        store_at(f"s3://{BUCKET}/{tmp_path.name}").get("a")


def test_a_bucket_that_is_not_there_is_told_at_once(server, use_s3):
    use_s3(server.url)

    with pytest.raises(FileNotFoundError, match="bucket"):
        store_at("s3://nosuchbucket/run").put("a", [b"1"])
