"""Places for checkpoints by their names: a path is a directory, a URL such as s3://bucket/run an object store."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from production_ml.core.errors import ConfigError
from production_ml.core.redaction import redact_text
from production_ml.fault_tolerance.checkpoint_format.base import CheckpointPlace
from production_ml.fault_tolerance.checkpoint_format.directory import CheckpointDirectory
from production_ml.storage.stores import is_store_url, open_store

_UNFIT: Final = {
    **dict.fromkeys(("http", "https", "ftp", "ftps"), "cannot keep checkpoints"),
    # fsspec's memory is that of one process: another one writes the checkpoints, and the next start is a third.
    "memory": "is this process's own memory, and ends with it",
}
"""What is wrong with URLs of that scheme."""


def open_place(name: str | os.PathLike[str]) -> CheckpointPlace:
    """The place of that path or URL; it need not be there yet, and nothing is asked of a server.

    A path that begins with ~ is below the user's home.

    Raises:
        ConfigError: It is neither, or is empty, or a URL that holds credentials or that nobody knows.
        MissingDependencyError: The package for such a store is not installed.
    """
    if isinstance(name, str) and is_store_url(name):
        return _place_at(name)
    if name == "":
        raise ConfigError("checkpoint_dir", name, "is empty", cure='Give a path; "." is the working directory.')
    try:
        path = Path(name)
        # Nobody means a directory that is called ~; ~name is left as it is, for it may be one.
        return CheckpointDirectory(path.expanduser() if path.parts[:1] == ("~",) else path)
    except TypeError:
        raise ConfigError("checkpoint_dir", name, "must be a path, or the URL of an object store") from None


def _place_at(url: str) -> CheckpointPlace:
    parts = urlsplit(url)
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
            why = "is no file URL of this machine: it begins with file:/// and holds neither ? nor #"
            raise ConfigError("checkpoint_dir", redact_text(url), why, cure="Give the path itself.")
        return CheckpointDirectory(Path(unquote(parts.path)))
    if (problem := _UNFIT.get(parts.scheme)) is not None:
        cure = "Give a path (one below /dev/shm is in memory), or a URL such as s3://bucket/run."
        raise ConfigError("checkpoint_dir", redact_text(url), problem, cure=cure)
    # Late: the package of a store brings hundreds of others.
    from production_ml.fault_tolerance.checkpoint_format.object_directory import ObjectCheckpointDirectory

    return ObjectCheckpointDirectory(open_store(url))
