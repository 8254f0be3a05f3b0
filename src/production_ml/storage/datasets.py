"""The dataset store: named, numbered versions of data that can be shown to be the bytes that were registered.

    ROOT/content/<hash>/data/…          the files, read-only, once per content however many versions point at it
    ROOT/content/<hash>/dataset.json    the manifest: every file with its hash and size
    ROOT/versions/<name>/<n>.json       version n of a name, bound to a content hash

Both steps that change the store are atomic: a content directory is renamed into place when all of it is durable,
and a version record is linked under a number that nobody has. So two registrations may run at once without a lock.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from production_ml.core.clock import SYSTEM_CLOCK, Clock, iso_utc
from production_ml.core.errors import ConfigError, DamagedFileError, DatasetError
from production_ml.storage.durable import fsync_directory, write_durably
from production_ml.storage.hashing import hash_bytes, hash_file
from production_ml.storage.names import check_name

MANIFEST_FILE: Final = "dataset.json"
LATEST: Final = "latest"
_FORMAT_VERSION: Final = 1
_SHORTEST_HASH_PREFIX: Final = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetVersion:
    """A version of a dataset: a number for people, a content hash for everything that must not be mistaken."""

    name: str
    version: int
    content_hash: str
    """XXH3-128 over the sorted file names and the hash of each file, 32 hex digits."""
    directory: Path
    files: Mapping[str, str]
    """File name relative to `directory`, with `/`, to XXH3-128 digest."""
    size_bytes: int
    description: str
    registered_at: str
    problem: str | None = None
    """Why it cannot be used; only `DatasetStore.list` shows such versions, without their files."""

    @property
    def path(self) -> Path:
        """The file where the dataset is a single one, else the directory."""
        return self.directory / next(iter(self.files)) if len(self.files) == 1 else self.directory

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "directory": str(self.directory), "path": str(self.path)}


@dataclass(frozen=True, slots=True)
class _Record:
    """What `versions/<name>/<n>.json` binds together."""

    name: str
    version: int
    content_hash: str
    description: str
    registered_at: str


class DatasetStore:
    """Datasets by name and version in one directory, each file hashed.

    Args:
        root: The store's directory; made by the first registration.
        clock: Dates the versions.
    """

    def __init__(self, root: Path | str, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self.root = Path(root)
        self._clock = clock

    def register(self, name: str, files: Path | str, description: str = "") -> DatasetVersion:
        """Copy a file or a directory into the store and give it the next version number of `name`.

        Content that `name` already has is not copied again: its version is returned as it is.

        Raises:
            ConfigError: The name has letters that a path or a reference cannot hold.
            DatasetError: There is nothing to register at `files`.
            DamagedFileError: The store already has this content, but its copy is damaged.
        """
        check_name("dataset name", name)
        sources = self._sources(Path(files))
        content_hash = _content_hash({target: hash_file(source) for target, source in sources.items()})
        if not self._content(content_hash).is_dir():
            content_hash = self._add_content(sources)
        return self._verified(self._read_version(self._bind(name, content_hash, description)))

    def get(self, name: str, version: int | str = LATEST) -> DatasetVersion:
        """The version of that number, `latest`, or a hash's first digits, after every file was hashed again.

        Raises:
            DatasetError: There is no such dataset or version, or the prefix fits several.
            DamagedFileError: A file is not what was registered; the error names it.
        """
        return self._verified(self._read_version(self._choose(name, str(version))))

    def list(self) -> tuple[DatasetVersion, ...]:
        """All versions by name and number, as recorded: their files are not read.

        One whose record of files is lost or damaged is listed with its `problem`.
        """
        holder = self.root / "versions"
        names = sorted(entry.name for entry in holder.iterdir()) if holder.is_dir() else []
        return tuple(self._listed(record) for name in names for record in self._records(name))

    def _sources(self, files: Path) -> dict[str, Path]:
        if not files.exists():
            raise DatasetError(f"{files}: not found, so there is nothing to register.")
        if files.is_file():
            return {files.name: files}
        if self.root.resolve().is_relative_to(files.resolve()):
            raise DatasetError(f"{files} holds the dataset store {self.root}: a store cannot be registered in itself.")
        sources = {path.relative_to(files).as_posix(): path for path in _files_below(files)}
        if not sources:
            raise DatasetError(f"{files}: the directory holds no file, so there is nothing to register.")
        return sources

    def _content(self, content_hash: str) -> Path:
        return self.root / "content" / content_hash

    def _add_content(self, sources: Mapping[str, Path]) -> str:
        """Copy, and hash the copies: a source that is being written to must not end up under another's hash."""
        holder = self.root / "content"
        holder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".incomplete-", dir=holder, ignore_cleanup_errors=True) as temporary:
            written = Path(temporary) / "content"
            hashes = {target: _copy_durably(source, written / "data" / target) for target, source in sources.items()}
            sizes = {target: (written / "data" / target).stat().st_size for target in hashes}
            content_hash = _content_hash(hashes)
            write_durably(written / MANIFEST_FILE, _encode_manifest(content_hash, hashes, sizes))
            for directory in [written, *(path for path in written.rglob("*") if path.is_dir())]:
                fsync_directory(directory)
            self._commit(written, self._content(content_hash))
        return content_hash

    def _commit(self, written: Path, target: Path) -> None:
        try:
            written.rename(target)
        except OSError:
            # Somebody else registered the same content meanwhile: a directory cannot be renamed onto a full one.
            if not target.is_dir():
                raise
        fsync_directory(target.parent)

    def _bind(self, name: str, content_hash: str, description: str) -> _Record:
        while True:
            versions = self._records(name)
            for version in versions:
                if version.content_hash == content_hash:
                    return version
            number = versions[-1].version + 1 if versions else 1
            record = _Record(name, number, content_hash, description, iso_utc(self._clock.wall_seconds()))
            stated = {"format_version": _FORMAT_VERSION, **asdict(record)}
            if _create_durably(self.root / "versions" / name / f"{number}.json", stated):
                return record

    def _records(self, name: str) -> tuple[_Record, ...]:
        records = (_read_record(path) for path in (self.root / "versions" / name).glob("[0-9]*.json"))
        return tuple(sorted(records, key=lambda record: record.version))

    def _read_version(self, record: _Record) -> DatasetVersion:
        """Only of a version that is asked for: a lost content directory must not take the others with it."""
        content = self._content(record.content_hash)
        files, size_bytes = _read_manifest(content / MANIFEST_FILE, record.content_hash)
        return DatasetVersion(**asdict(record), directory=content / "data", files=files, size_bytes=size_bytes)

    def _listed(self, record: _Record) -> DatasetVersion:
        try:
            return self._read_version(record)
        except DamagedFileError as damage:
            directory = self._content(record.content_hash) / "data"
            return DatasetVersion(**asdict(record), directory=directory, files={}, size_bytes=0, problem=damage.what)

    def _choose(self, name: str, wanted: str) -> _Record:
        check_name("dataset name", name)
        versions = self._records(name)
        if not versions:
            raise _unknown_name(name, sorted({version.name for version in self.list()}), self.root)
        if wanted == LATEST:
            return versions[-1]
        fitting = [version for version in versions if wanted == str(version.version)] or [
            version
            for version in versions
            if len(wanted) >= _SHORTEST_HASH_PREFIX and version.content_hash.startswith(wanted)
        ]
        if len(fitting) != 1:
            raise _no_single_version(name, wanted, versions, several=bool(fitting))
        return fitting[0]

    def _verified(self, dataset: DatasetVersion) -> DatasetVersion:
        for name, expected in dataset.files.items():
            path = dataset.directory / name
            if not path.is_file():
                raise _damaged(path, "is listed in the dataset but missing")
            found = hash_file(path)
            if found != expected:
                raise _damaged(path, f"does not match its hash (expected {expected[:8]}, found {found[:8]})")
        return dataset


def parse_reference(reference: str) -> tuple[str, str]:
    """`digits:3` as a name and a version; without one the version is `latest`.

    Raises:
        ConfigError: There is a colon but no version after it.
    """
    name, colon, version = reference.partition(":")
    if colon and not version:
        raise ConfigError("dataset", reference, "has no version after the colon", cure="Write NAME or NAME:VERSION.")
    return name, version or LATEST


def _files_below(directory: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Every file, through links too: what a link leads to is part of the data. What cannot be kept is refused."""
    real = directory.resolve()
    if real in above:
        raise DatasetError(f"{directory}: the link leads back to a directory that holds it, so copying would not end.")
    try:
        entries = sorted(directory.iterdir())
    except OSError as problem:
        raise DatasetError(f"{directory}: cannot be listed ({problem.strerror}).") from problem
    for entry in entries:
        if entry.is_dir():
            yield from _files_below(entry, (*above, real))
        elif entry.is_file():
            yield entry
        else:
            what = "a link that leads to nothing" if entry.is_symlink() else "neither a file nor a directory"
            raise DatasetError(f"{entry}: is {what}, so it cannot be registered.", cure="Remove or mend it.")


def _content_hash(files: Mapping[str, str]) -> str:
    return hash_bytes(json.dumps(sorted(files.items())).encode())


def _copy_durably(source: Path, target: Path) -> str:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    with target.open("rb") as copy:
        os.fsync(copy.fileno())
    # The commonest damage is a well-meant edit in place.
    target.chmod(0o444)
    return hash_file(target)


def _encode_manifest(content_hash: str, hashes: Mapping[str, str], sizes: Mapping[str, int]) -> bytes:
    manifest = {
        "format_version": _FORMAT_VERSION,
        "content_hash": content_hash,
        "files": {target: {"hash": hashes[target], "size_bytes": sizes[target]} for target in sorted(hashes)},
    }
    return (json.dumps(manifest, indent=2) + "\n").encode()


def _create_durably(path: Path, record: Mapping[str, Any]) -> bool:
    """Write a file that must be new; False where another writer was quicker."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".new-{uuid.uuid4().hex}")
    try:
        write_durably(temporary, (json.dumps(record, indent=2) + "\n").encode())
        # link() and not rename(): it is the one that refuses to replace.
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    fsync_directory(path.parent)
    return True


def _read_record(path: Path) -> _Record:
    stated = _read_json(path)
    try:
        return _Record(**{field.name: stated[field.name] for field in fields(_Record)})
    except KeyError as missing:
        raise _damaged(path, f"has no {missing}") from None


def _read_manifest(path: Path, content_hash: str) -> tuple[dict[str, str], int]:
    """The hash of each file, and the size of all."""
    stated = _read_json(path)
    try:
        files = {target: str(file["hash"]) for target, file in stated["files"].items()}
        size_bytes = sum(int(file["size_bytes"]) for file in stated["files"].values())
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise _damaged(path, f"is no readable record of files ({problem!r})") from problem
    if _content_hash(files) != content_hash:
        raise _damaged(path, "does not match the hash of the dataset")
    return files, size_bytes


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        raise _damaged(path, "is missing from the dataset store") from None
    except (OSError, ValueError, TypeError) as problem:
        raise _damaged(path, f"cannot be read ({problem})") from problem


def _damaged(path: Path, problem: str) -> DamagedFileError:
    return DamagedFileError(
        path,
        problem,
        meaning="The dataset is not used: results from it could not be reproduced.",
        cure="Check the disk, delete the damaged content directory, and register the dataset again from its source.",
    )


def _unknown_name(name: str, known: list[str], root: Path) -> DatasetError:
    listed = f"Known datasets: {', '.join(known)}." if known else f"The store {root} is empty."
    return DatasetError(
        f"No dataset is called {name!r}.", meaning=listed, cure=f"Register it with: production-ml data add {name} PATH"
    )


def _no_single_version(name: str, wanted: str, versions: tuple[_Record, ...], *, several: bool) -> DatasetError:
    problem = "several versions have a hash that begins so" if several else "there is no such version"
    known = ", ".join(f"{version.version} ({version.content_hash[:8]})" for version in versions)
    return DatasetError(
        f"Dataset {name}:{wanted}: {problem}.",
        meaning=f"Known versions: {known}.",
        cure=f"Ask for a number, 'latest', or at least {_SHORTEST_HASH_PREFIX} digits of a hash.",
    )
