"""S3 and all that speak its protocol, by s3fs: large objects go up in parts, several at once, each tried by itself."""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

from production_ml.core.errors import ConfigError
from production_ml.core.retry import Retry, RetryPolicy
from production_ml.storage.base import StoredObject, check_key
from production_ml.storage.object_store import FsspecStore, open_file_system
from production_ml.storage.store_errors import is_beyond_end, is_transient

_PART_BYTES: Final = 16 << 20
_MOST_PARTS: Final = 10_000
"""S3 takes no more of one object."""
_PARALLEL_PARTS: Final = 4
_KEYS_PER_REQUEST: Final = 1000
"""S3 lists and deletes no more at once."""
_CONFIG: Final = {
    # One policy counts the tries and tells of them; botocore's own would multiply with it, in silence.
    "retries": {"total_max_attempts": 1},
    # A server that is gone has to be noticed long before a training is.
    "connect_timeout": 10,
    "read_timeout": 60,
    "max_pool_connections": 32,
}


class S3Store(FsspecStore):
    """Objects of a bucket, below a prefix.

    Credentials, region and endpoint come from AWS's environment variables (`AWS_ACCESS_KEY_ID`, `AWS_PROFILE`,
    `AWS_ENDPOINT_URL_S3`, …) and configuration files.

    Args:
        url: `s3://bucket/prefix`.
        retry_policy: How often and for how long each request is tried; for a large object, each part.
        part_bytes: An object of more bytes goes up in parts of so many, more where 10,000 parts would not do.
        keys_per_request: How many objects are listed or deleted by one request.

    Raises:
        ConfigError: The URL names no bucket.
        MissingDependencyError: s3fs is not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        retry_policy: RetryPolicy | None = None,
        part_bytes: int = _PART_BYTES,
        keys_per_request: int = _KEYS_PER_REQUEST,
    ) -> None:
        self.address = url.rstrip("/")
        self._bucket, _, self._prefix = self.address.partition("://")[2].partition("/")
        if not self._bucket:
            raise ConfigError("url", url, "names no bucket; it looks like s3://bucket/prefix")
        self._root = f"{self._bucket}/{self._prefix}".rstrip("/")
        self._part_bytes = part_bytes
        self._keys_per_request = keys_per_request
        self._file_system = open_file_system("s3", config_kwargs=dict(_CONFIG))
        self._file_system.retries = 1  # s3fs has tries of its own, too
        self._policy = retry_policy or RetryPolicy()
        self._retry = Retry(self._policy, is_transient=is_transient)

    def put(self, key: str, pieces: Sequence[bytes | memoryview]) -> None:
        if sum(len(piece) for piece in pieces) <= self._part_bytes:
            body = b"".join(pieces)
            self._ask(f"put {key}", "put_object", Key=self._full(key), Body=body)
        else:
            self._put_in_parts(key, pieces)

    def get(self, key: str, begin: int = 0, end: int | None = None) -> bytes:
        path = self._path(key)
        whole = begin == 0 and end is None
        limits = {} if whole else {"start": begin, "end": end}

        def ask() -> bytes:
            # Without max_concurrency=1, s3fs reads large objects in ranges, which may be of two versions.
            return bytes(self._file_system.cat_file(path, max_concurrency=1, **limits))

        if end is not None and end <= begin:
            return b""
        try:
            return self._try(f"get {key}", ask)
        except OSError as problem:
            if is_beyond_end(problem):
                return b""
            raise

    def size(self, key: str) -> int:
        return int(self._ask(f"size of {key}", "head_object", Key=self._full(key))["ContentLength"])

    def listing(self, folder: str = "") -> list[StoredObject]:
        prefix = "/".join(part for part in (self._prefix, folder and check_key(folder)) if part)
        options: dict[str, Any] = {"Prefix": f"{prefix}/" if prefix else "", "MaxKeys": self._keys_per_request}
        listed = []
        while True:
            page = self._ask(f"list {folder}", "list_objects_v2", **options)
            for entry in page.get("Contents", []):
                key = self._relative(entry["Key"])
                listed.append(StoredObject(key, int(entry["Size"]), entry["LastModified"].timestamp()))
            if not page.get("IsTruncated"):
                return sorted(listed, key=lambda found: found.key)
            options["ContinuationToken"] = page["NextContinuationToken"]

    def delete(self, keys: Iterable[str]) -> None:
        doomed = [{"Key": self._full(key)} for key in keys]
        for begin in range(0, len(doomed), self._keys_per_request):
            batch = doomed[begin : begin + self._keys_per_request]
            answer = self._ask("delete", "delete_objects", Delete={"Objects": batch, "Quiet": True})
            if errors := answer.get("Errors"):
                number = errno.EACCES if errors[0].get("Code") == "AccessDenied" else errno.EREMOTEIO
                raise OSError(number, f"{len(errors)} objects were not deleted, {errors[0].get('Key')}", self.address)

    def clear_unfinished(self, before: float) -> int:
        options: dict[str, Any] = {"Prefix": f"{self._prefix}/" if self._prefix else ""}
        cleared = 0
        while True:
            try:
                page = self._ask("list uploads", "list_multipart_uploads", **options)
            except OSError as problem:
                if problem.errno == errno.ENOSYS:
                    return cleared  # not every server that speaks S3 can tell
                raise
            for upload in page.get("Uploads", []):
                if upload["Initiated"].timestamp() < before:
                    self._abort(upload["Key"], upload["UploadId"])
                    cleared += 1
            if not page.get("IsTruncated"):
                return cleared
            options |= {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def _put_in_parts(self, key: str, pieces: Sequence[bytes | memoryview]) -> None:
        size_bytes = sum(len(piece) for piece in pieces)
        parts = split(pieces, max(self._part_bytes, -(-size_bytes // _MOST_PARTS)))
        full = self._full(key)
        upload_id = self._ask(f"begin {key}", "create_multipart_upload", Key=full)["UploadId"]
        try:
            sent = self._send(key, upload_id, parts)
            self._complete(key, upload_id, sent, size_bytes)
        except BaseException:
            # Parts without an object are in no listing, but on the bill.
            with contextlib.suppress(OSError):
                self._abort(full, upload_id)
            raise

    def _send(self, key: str, upload_id: str, parts: Sequence[Sequence[memoryview]]) -> list[dict[str, Any]]:
        given_up = threading.Event()
        retry = Retry(
            self._policy,
            is_transient=lambda problem: is_transient(problem) and not given_up.is_set(),
            pause=given_up.wait,
        )

        def send(number: int, part: Sequence[memoryview]) -> dict[str, Any]:
            body = b"".join(part)
            what = f"put {key}, part {number} of {len(parts)}"
            place: dict[str, Any] = {"Key": self._full(key), "UploadId": upload_id, "PartNumber": number}
            answer = self._ask(what, "upload_part", retry, **place, Body=body)
            # Servers that check parts by checksums want to be told of them again at the end.
            checksums = {name: value for name, value in answer.items() if name.startswith("ChecksumCRC")}
            return {"PartNumber": number, "ETag": answer["ETag"], **checksums}

        with ThreadPoolExecutor(_PARALLEL_PARTS, thread_name_prefix="upload") as pool:
            under_way: list[Future[dict[str, Any]]] = []
            try:
                under_way = [pool.submit(send, number, part) for number, part in enumerate(parts, 1)]
                return [future.result() for future in under_way]
            except BaseException:
                # The upload is lost: parts that are being tried again must not keep the caller waiting.
                given_up.set()
                pool.shutdown(cancel_futures=True)
                raise

    def _complete(self, key: str, upload_id: str, sent: list[dict[str, Any]], size_bytes: int) -> None:
        place: dict[str, Any] = {"Key": self._full(key), "UploadId": upload_id}
        try:
            self._ask(f"finish {key}", "complete_multipart_upload", **place, MultipartUpload={"Parts": sent})
        except FileNotFoundError:
            # The answer to an earlier try was lost: the upload is gone, because it has become the object.
            found = self._ask(f"size of {key}", "head_object", Key=self._full(key))
            made_of_parts = str(found["ETag"]).strip('"').endswith(f"-{len(sent)}")
            if found["ContentLength"] != size_bytes or not made_of_parts:
                raise

    def _abort(self, full_key: str, upload_id: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._ask("abort upload", "abort_multipart_upload", Key=full_key, UploadId=upload_id)

    def _ask(self, what: str, method: str, retry: Retry | None = None, **arguments: Any) -> dict[str, Any]:
        def ask() -> dict[str, Any]:
            answer: dict[str, Any] = self._file_system.call_s3(method, Bucket=self._bucket, **arguments)
            return answer

        return self._try(what, ask, retry)

    def _full(self, key: str) -> str:
        return f"{self._prefix}/{check_key(key)}".lstrip("/")

    def _relative(self, full_key: str) -> str:
        return full_key.removeprefix(f"{self._prefix}/") if self._prefix else full_key


def split(pieces: Sequence[bytes | memoryview], part_bytes: int) -> list[list[memoryview]]:
    """The pieces' bytes in parts of `part_bytes` each, but for the last; nothing is copied."""
    parts: list[list[memoryview]] = [[]]
    room = part_bytes
    for piece in pieces:
        rest = memoryview(piece)
        while rest:
            if not room:
                parts.append([])
                room = part_bytes
            taken = rest[:room]
            parts[-1].append(taken)
            rest = rest[len(taken) :]
            room -= len(taken)
    return parts
