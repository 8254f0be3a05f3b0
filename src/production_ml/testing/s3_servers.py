"""Real servers that speak S3 on this machine, for tests: moto's (in memory) and s3rver (in a directory)."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Final

BUCKET: Final = "checkpoints"
CREDENTIALS: Final = {
    "AWS_ACCESS_KEY_ID": "S3RVER",
    "AWS_SECRET_ACCESS_KEY": "S3RVER",
    "AWS_DEFAULT_REGION": "us-east-1",
}
"""s3rver takes no others, and moto takes any."""
_START_SECONDS: Final = 60


class S3Server:
    """A server process whose address stays the same over a kill and a restart.

    Args:
        command: Starts it; `PORT` stands for its port.
        log: Where its output goes.
    """

    def __init__(self, command: Sequence[str], log: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        self._command = [word.replace("PORT", str(self.port)) for word in command]
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """What `AWS_ENDPOINT_URL_S3` is set to."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and come back when it answers.

        Raises:
            RuntimeError: It does not.
        """
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)  # noqa: S603 - a test's own
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                time.sleep(0.05)
            else:
                return
        self.kill()
        raise RuntimeError(f"The server did not start:\n{self._log.read_text()}")

    def kill(self) -> None:
        """SIGKILL it; what it keeps in memory is lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def moto_server(directory: Path) -> S3Server:
    """A server of moto's, started, with `BUCKET` in it.

    Raises:
        RuntimeError: It does not start.
    """
    server = S3Server([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "PORT"], directory / "moto.log")
    server.start()
    make = urllib.request.Request(f"{server.url}/{BUCKET}", method="PUT")  # noqa: S310 - to the server just started
    urllib.request.urlopen(make, timeout=_START_SECONDS).close()  # noqa: S310 - as above
    return server


def s3rver_server(program: Path, directory: Path) -> S3Server:
    """s3rver (npm), started, with `BUCKET` in it; it keeps everything in `directory`.

    Raises:
        RuntimeError: It does not start.
    """
    options = ["--directory", str(directory / "s3rver"), "--address", "127.0.0.1", "--port", "PORT", "--silent"]
    server = S3Server([str(program), *options, "--configure-bucket", BUCKET], directory / "s3rver.log")
    server.start()
    return server
