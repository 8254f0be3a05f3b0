"""Real servers that speak S3 on this machine, for tests: moto's (in memory) and s3rver (in a directory)."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
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
        environ: Variables that it is given beside this process's own.
    """

    def __init__(self, command: Sequence[str], log: Path, environ: Mapping[str, str] | None = None) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        self._command = [word.replace("PORT", str(self.port)) for word in command]
        self._log = log
        self._environ = environ or {}
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
            environ = {**os.environ, **self._environ}
            command = self._command
            self._process = subprocess.Popen(command, env=environ, stdout=log, stderr=log)  # noqa: S603 - a test's own
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                self.ask("GET", "/")
            except (OSError, http.client.HTTPException):
                time.sleep(0.05)
            else:
                return
        self.kill()
        raise RuntimeError(f"The server did not start:\n{self._log.read_text()}")

    def ask(self, method: str, path: str) -> int:
        """The status of its answer to a request without credentials; straight, whatever proxy the environment names.

        Raises:
            OSError: It does not answer.
            http.client.HTTPException: What answers is no server: a port that nobody listens at may answer itself.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_START_SECONDS)
        try:
            connection.request(method, path)
            return connection.getresponse().status
        finally:
            connection.close()

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
    if (status := server.ask("PUT", f"/{BUCKET}")) != http.client.OK:
        server.kill()
        raise RuntimeError(f"The server made no bucket, but answered {status}.")
    return server


def s3rver_server(program: Path, directory: Path) -> S3Server:
    """s3rver (npm), started, with `BUCKET` in it; it keeps everything in `directory`.

    Raises:
        RuntimeError: It does not start.
    """
    options = ["--directory", str(directory / "s3rver"), "--address", "127.0.0.1", "--port", "PORT", "--silent"]
    command = [str(program), *options, "--configure-bucket", BUCKET]
    # It answers a `put` before the object's last bytes are written. By one thread they are in the order in which it
    # asks for them, and so come before what it does await; by four, a busy machine shows an object that is cut off.
    server = S3Server(command, directory / "s3rver.log", {"UV_THREADPOOL_SIZE": "1"})
    server.start()
    return server
