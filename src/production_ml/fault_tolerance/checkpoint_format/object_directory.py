"""Checkpoints in an object store, where nothing can be renamed: the manifest, put last, is the commit.

```
run/latest.json                                the newest commits, so that a listing that lags hides none of them
run/step-00000300/manifest.json                the commit; names the save whose shards count
run/step-00000300/SAVEID/rank-00000.safetensors
run/step-00000300/SAVEID/part-00001.json       while the save is under way: a rank's shard is stored
run/step-00000300/SAVEID/owner.json            while the save is under way: who makes it
run/step-00000400/SAVEID/quarantined.json      damaged shards, kept as evidence
run/quarantine/step-00000400.TIME/{manifest,reason}.json
```
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from production_ml.core.clock import SYSTEM_CLOCK, iso_utc
from production_ml.core.errors import CheckpointError, CheckpointWriteError
from production_ml.core.structured_logging import log_event
from production_ml.fault_tolerance.checkpoint_format.base import CheckpointInfo
from production_ml.fault_tolerance.checkpoint_format.directory import QUARANTINE
from production_ml.fault_tolerance.checkpoint_format.latest_commits import LatestCommits
from production_ml.fault_tolerance.checkpoint_format.manifest import (
    HEAD_BYTES,
    MANIFEST_FILE,
    FileEntry,
    Manifest,
    ManifestSummary,
    decode_manifest,
    decode_summary,
    encode_manifest,
    save_id_in,
)
from production_ml.fault_tolerance.checkpoint_format.misnamed import Misnamed
from production_ml.fault_tolerance.checkpoint_format.object_save import OWNER, PART, ObjectSave, SaveClaim
from production_ml.fault_tolerance.checkpoint_format.object_source import ObjectSource, unreadable_object
from production_ml.fault_tolerance.checkpoint_format.save_lock import SILENCE_SECONDS
from production_ml.storage.base import ObjectStore, StoredObject
from production_ml.storage.hashing import hash_bytes

_LOG: Final = logging.getLogger(__name__)
_KEPT_AS_EVIDENCE: Final = "quarantined.json"
_MANIFEST: Final = re.compile(r"step-(\d{8,})/manifest\.json")
_OF_SAVE: Final = re.compile(r"step-(\d{8,})/([^/]+)/(.+)")
_PARALLEL: Final = 16

Item = TypeVar("Item")
Result = TypeVar("Result")


class ObjectCheckpointDirectory:
    """Checkpoints below a URL; `CheckpointDirectory`'s sibling for stores.

    A listing of a store may be old, so it is only ever a hint: what it shows is looked up by name before it counts, and
    the newest commits are looked up though it does not show them.

    Args:
        store: Where they are kept.
    """

    def __init__(self, store: ObjectStore) -> None:
        self.store = store
        self._latest = LatestCommits(store)
        self._known: dict[tuple[int, str], ManifestSummary] = {}

    @property
    def url(self) -> str:
        """Where they are kept, for messages."""
        return self.store.address

    def committed(self, step: int) -> str:
        """The URL of the checkpoint of `step`, for messages."""
        return f"{self.url}/{_folder(step)}"

    def incomplete(self, step: int, save_id: str) -> ObjectSave:
        """Where the ranks write the checkpoint of `step` in the save of that id."""
        return ObjectSave(self.store, step, save_id)

    def begin(self, step: int, save_id: str) -> SaveClaim:
        """Say that this process makes the save.

        Raises:
            OSError: The store does not take it.
        """
        return self.incomplete(step, save_id).claim()

    def steps(self) -> list[int]:
        """The committed steps, oldest first. Says nothing yet about their health.

        Raises:
            OSError: The store does not answer.
        """
        return sorted(self._identities())

    def manifest(self, step: int) -> Manifest:
        """The verified manifest of `step`.

        Raises:
            DamagedCheckpointError: It is missing or damaged.
            CheckpointError: It cannot be read for another reason, such as a newer format.
        """
        data, name = self._manifest_bytes(step)
        return decode_manifest(data, name, step=step)

    def _summary(self, step: int) -> ManifestSummary:
        data, name = self._manifest_bytes(step)
        return decode_summary(data, name, step=step)

    def _manifest_bytes(self, step: int) -> tuple[bytes, str]:
        key = _manifest_key(step)
        name = f"{self.url}/{key}"
        try:
            data = self.store.get(key)
        except OSError as problem:
            raise unreadable_object(name, problem, step=step) from problem
        return data, name

    def identity(self, step: int) -> str | None:
        """What tells the checkpoint of `step` from another that takes its name later; None where there is none.

        Where the store does not answer it is another one than any: nobody may take what he cannot see for unchanged.
        """
        try:
            return self._identity(step)
        except OSError:
            return secrets.token_hex(16)

    def infos(self) -> list[CheckpointInfo]:
        """The checkpoints whose manifests are sound, oldest first. Each manifest is read once and then remembered.

        Raises:
            OSError: The store does not answer.
        """
        known: dict[tuple[int, str], ManifestSummary] = {}
        for step, identity in sorted(self._identities().items()):
            with contextlib.suppress(CheckpointError):
                known[step, identity] = self._known.get((step, identity)) or self._summary(step)
        self._known = known
        return [CheckpointInfo.of(summary) for summary in known.values()]

    def is_whole(self, step: int) -> bool:
        """Whether the checkpoint of `step` has a sound manifest, and each file that it names at its size.

        It reads no tensor: what it finds whole may still have a flipped bit, which only `verify_checkpoint` finds.
        """
        try:
            summary = self._known.get((step, self._identity(step) or "")) or self._summary(step)
            return not self._unlike(step, summary.files)
        except (CheckpointError, OSError):
            return False

    def reading(self, step: int) -> contextlib.AbstractContextManager[bool]:  # noqa: ARG002 - whichever it is
        """A store has no locks: a reader whose checkpoint is pruned finds it gone, and lists again."""
        return contextlib.nullcontext(False)

    def is_being_read(self, step: int) -> bool:  # noqa: ARG002 - as above
        """Nobody can tell."""
        return False

    def source(self, step: int, file: str) -> ObjectSource:
        """The bytes of a shard that the manifest of `step` names.

        Raises:
            DamagedCheckpointError: It is missing.
            CheckpointError: The store does not give it.
        """
        return ObjectSource(self.store, f"{_folder(step)}/{file}", step=step)

    def commit(self, written: ObjectSave, manifest: Manifest) -> None:
        """Make a checkpoint of what the ranks have stored.

        Raises:
            CheckpointWriteError: A shard is not there as it was written.
            OSError: The store does not answer; whether there is a checkpoint now, `abandon` settles.
        """
        folder = _folder(manifest.step)
        self._check_shards(manifest)
        replaced = save_id_in(self._head(manifest.step))
        self.store.put(f"{folder}/{MANIFEST_FILE}", [encode_manifest(manifest)])
        # It is committed. What follows is order in the house, and may fail: another start will do it.
        try:
            self._latest.add(manifest.step)
            messages = [PART.format(rank) for rank in range(1, manifest.world_size)]
            self.store.delete(f"{written.folder}/{name}" for name in (*messages, OWNER))
            if replaced not in (None, written.save_id):
                self._delete_save(self.incomplete(manifest.step, str(replaced)))
        except OSError as problem:
            what = f"{self.committed(manifest.step)} is committed, but could not be tidied up ({problem.strerror})."
            log_event(_LOG, "checkpoint_tidying_failed", what, level=logging.WARNING, step=manifest.step)

    def quarantine(self, step: int, reason: Mapping[str, Any]) -> str:
        """Take a damaged checkpoint out of the listing and keep it: it may be the evidence against a store.

        Its shards stay where they are, marked, for to move them would be to download and upload them.

        Raises:
            OSError: The store does not answer; the checkpoint is listed still, or its evidence is kept already.
        """
        key = _manifest_key(step)
        stamp = iso_utc(SYSTEM_CLOCK.wall_seconds()).replace(":", "")
        target = f"{QUARANTINE}/{_folder(step)}.{stamp}"
        saves = sorted({save.folder for save in self._saves(_folder(step))})
        why = json.dumps({**reason, "shards": saves}, indent=2).encode() + b"\n"
        with contextlib.suppress(FileNotFoundError):
            self.store.put(f"{target}/{MANIFEST_FILE}", [self.store.get(key)])
        self.store.put(f"{target}/reason.json", [why])
        for folder in saves:
            self.store.put(f"{folder}/{_KEPT_AS_EVIDENCE}", [why])
        self.store.delete([key])
        return f"{self.url}/{target}"

    def remove(self, step: int) -> bool:
        """Delete a checkpoint; the manifest goes first, so that a crash on the way leaves nothing that looks like one.

        Returns:
            True: whether it is being read cannot be told.

        Raises:
            OSError: The store does not answer.
        """
        save_id = save_id_in(self._head(step))
        self.store.delete([_manifest_key(step)])
        if save_id is not None:
            self._delete_save(self.incomplete(step, save_id))
        return True

    def abandon(self, written: ObjectSave) -> None:
        """Delete what a failed save has stored. Ranks still at work see that it is not claimed any more.

        Raises:
            OSError: The store does not answer. What is left is no checkpoint, or a whole one.
        """
        # The answer to the commit may have been lost, and not the commit.
        if save_id_in(self._head(written.step)) == written.save_id:
            self.store.delete([_manifest_key(written.step)])
        self._delete_save(written)

    def is_committed(self, written: ObjectSave) -> bool:
        """Whether a save has become the checkpoint of its step.

        Raises:
            OSError: The store does not answer.
        """
        return save_id_in(self._head(written.step)) == written.save_id

    def saves_under_way(self) -> list[ObjectSave]:
        """Where ranks write just now, as far as this host can tell: a save may outlive who asked for it."""
        try:
            return [save for save in self._saves() if save.is_held_here()]
        except OSError:
            return []

    def put_back(self) -> None:
        """Nothing is ever moved aside here."""

    def misnamed(self) -> list[Misnamed]:
        """A store's keys are verified by the store."""
        return []

    def remove_leftovers(self) -> None:
        """Clear away what interrupted saves and removals left behind; saves that may be alive are not touched.

        It is for those who save: a mere reader has no say in what is dead.

        Raises:
            OSError: The store does not answer.
        """
        saves = self._saves()
        for step in {save.step for save in saves}:
            of_step = {save: objects for save, objects in saves.items() if save.step == step}
            committed = self._surely_committed(step)
            for save, objects in of_step.items():
                if committed is not None and save.save_id != committed and save.is_dead(objects):
                    self._delete(save, objects)
        # Few who may write objects may list uploads; a rule of the bucket can clear those as well.
        with contextlib.suppress(PermissionError):
            self.store.clear_unfinished(before=SYSTEM_CLOCK.wall_seconds() - SILENCE_SECONDS)

    def _surely_committed(self, step: int) -> str | None:
        """The save that is the checkpoint of `step`, "" where none is, and None where a damaged manifest hides it."""
        if self._head(step) is None:
            return ""
        try:
            return self.manifest(step).save_id
        except CheckpointError:
            return None

    def _check_shards(self, manifest: Manifest) -> None:
        """Another start may have taken this save for dead: no manifest may name shards that are not there."""
        for file, size_bytes in self._unlike(manifest.step, manifest.files).items():
            found = "is gone" if size_bytes is None else f"has {size_bytes:,} bytes"
            raise CheckpointWriteError(
                f"The checkpoint of step {manifest.step} was given up: {self.committed(manifest.step)}/{file} {found}, "
                f"though {manifest.files[file].size_bytes:,} were written.",
                meaning="Training can go on; the newest committed checkpoint is unchanged.",
                cure="Look whether another run saves to the same place, or a rule of the bucket deletes objects.",
            )

    def _unlike(self, step: int, files: Mapping[str, FileEntry]) -> dict[str, int | None]:
        """The sizes of the shards that have another than `files` says, None for those that are gone."""
        names = sorted(files)
        found = _in_parallel(lambda name: _size(self.store, f"{_folder(step)}/{name}"), names)
        return {name: size for name, size in zip(names, found, strict=True) if size != files[name].size_bytes}

    def _identities(self) -> dict[int, str]:
        """The committed steps, each with what tells it from another that takes its name later."""
        listed = (_MANIFEST.fullmatch(stored.key) for stored in self.store.listing())
        asked = sorted({int(found[1]) for found in listed if found} | set(self._latest.steps()))
        return {step: one for step, one in zip(asked, _in_parallel(self._identity, asked), strict=True) if one}

    def _identity(self, step: int) -> str | None:
        head = self._head(step)
        return None if head is None else hash_bytes(head)

    def _head(self, step: int) -> bytes | None:
        """The begin of the manifest, which holds its hash and its save's id; None where there is no manifest."""
        try:
            return self.store.get(_manifest_key(step), 0, HEAD_BYTES)
        except FileNotFoundError:
            return None

    def _saves(self, folder: str = "") -> dict[ObjectSave, list[StoredObject]]:
        saves: dict[ObjectSave, list[StoredObject]] = {}
        for stored in self.store.listing(folder):
            if found := _OF_SAVE.fullmatch(stored.key):
                saves.setdefault(self.incomplete(int(found[1]), found[2]), []).append(stored)
        return saves

    def _delete_save(self, save: ObjectSave) -> None:
        self._delete(save, self.store.listing(save.folder))

    def _delete(self, save: ObjectSave, objects: Iterable[StoredObject]) -> None:
        keys = [stored.key for stored in objects]
        if f"{save.folder}/{_KEPT_AS_EVIDENCE}" in keys:
            return
        # The claim goes first: what a crash leaves is then judged by its age, and not taken for a save under way.
        self.store.delete(sorted(keys, key=lambda key: not key.endswith(f"/{OWNER}")))


def _folder(step: int) -> str:
    return f"step-{step:08d}"


def _manifest_key(step: int) -> str:
    return f"{_folder(step)}/{MANIFEST_FILE}"


def _size(store: ObjectStore, key: str) -> int | None:
    try:
        return store.size(key)
    except FileNotFoundError:
        return None


def _in_parallel(ask: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    if len(items) < 2:
        return [ask(item) for item in items]
    with ThreadPoolExecutor(min(_PARALLEL, len(items)), thread_name_prefix="store") as pool:
        return list(pool.map(ask, items))
