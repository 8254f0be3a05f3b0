"""The disk fills up while training runs, and has room again later: a real small file system under the script."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import threading
from pathlib import Path
from typing import ClassVar

from production_ml.drill.faults.base import FaultUnavailableError, Strike
from production_ml.drill.scene import Scene

_SIZE_BYTES = 64 << 20
_FULL_SECONDS = 0.5
_PIECE_BYTES = 1 << 20
_MOUNT = 'mount -t tmpfs -o size="$1" drill "$2" && echo ready && exec sleep infinity'


class DiskFull:
    """The script's working directory is a file system of 64 MiB, which another file fills for half a second."""

    signs: ClassVar[frozenset[str]] = frozenset({"checkpoint_paused", "checkpoint_save_failed"})
    keeps_weights: ClassVar[bool] = True
    is_requeued: ClassVar[bool] = False

    def __init__(self) -> None:
        self._holder: subprocess.Popen[bytes] | None = None
        self._ballast: Path | None = None
        self._emptying: threading.Timer | None = None

    def arrange(self, scene: Scene, strike: Strike) -> None:
        # In a mount namespace of its own, which ends with the process that holds it: nothing can be left mounted.
        command = ["unshare", "--mount", "--user", "--map-root-user", "sh", "-c", _MOUNT, "sh"]
        if shutil.which("unshare") is None or shutil.which("nsenter") is None:
            raise FaultUnavailableError("A small file system needs unshare and nsenter, of util-linux.")
        self._holder = subprocess.Popen(  # noqa: S603 - our own words
            [*command, str(_SIZE_BYTES), str(scene.work)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert self._holder.stdout is not None  # noqa: S101 - it is a pipe
        if self._holder.stdout.readline() != b"ready\n":
            said = self._holder.communicate()[1].decode(errors="replace").strip()
            raise FaultUnavailableError(f"A small file system cannot be mounted here ({said}).")
        pid = str(self._holder.pid)
        scene.prefix = ["nsenter", "--mount", "--user", "--preserve-credentials", "--target", pid]
        # After it has entered: what nsenter itself takes for a directory is the one below the mount.
        scene.prefix += ["--", "sh", "-c", 'cd "$0" && exec "$@"', str(scene.work)]

    def strike(self, scene: Scene, strike: Strike) -> None:
        self._ballast = self._seen_from_here(scene.work) / "ballast"
        with contextlib.suppress(OSError), self._ballast.open("wb", buffering=0) as file:
            while file.write(bytes(_PIECE_BYTES)):
                pass
        self._emptying = threading.Timer(_FULL_SECONDS, self._empty)
        self._emptying.start()

    def lift(self, scene: Scene) -> None:
        if self._emptying is not None:
            self._emptying.cancel()
            self._emptying.join()
        self._empty()
        if self._holder is None:
            return
        if self._holder.poll() is None:
            # What the script has written is needed when the file system is gone.
            shutil.copytree(self._seen_from_here(scene.work), scene.work, dirs_exist_ok=True)
        self._holder.kill()
        self._holder.communicate()

    def _empty(self) -> None:
        if self._ballast is not None:
            self._ballast.unlink(missing_ok=True)

    def _seen_from_here(self, path: Path) -> Path:
        assert self._holder is not None  # noqa: S101 - it was arranged
        return Path(f"/proc/{self._holder.pid}/root{path}")
