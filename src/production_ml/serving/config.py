"""The server's settings: where it listens, who may ask, how much it takes."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from production_ml.core.errors import ConfigError
from production_ml.core.redaction import REDACTED
from production_ml.serving.batching import BatchingConfig

TOKEN_VARIABLE: Final = "PRODUCTION_ML_TOKEN"  # noqa: S105 - the name of a variable, not a token
_MIB: Final = 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerConfig:
    """How a `ModelServer` listens."""

    host: str = "127.0.0.1"
    port: int = 8080
    """0 picks a free one."""
    token: str | None = field(default=None, repr=False)
    """What clients send as `Authorization: Bearer …`; needed where other machines can reach the server."""
    batching: BatchingConfig = field(default_factory=BatchingConfig)
    max_body_bytes: int = 16 * _MIB
    tracking_uri: str | None = None
    """The registry that references are looked up in; see `MlflowConnection`."""
    ready_file: Path | None = None
    """Holds `{"url", "pid", "port"}` while the server is ready."""

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise ConfigError("port", self.port, "must be a port, 0 to 65535; 0 picks a free one")
        if self.max_body_bytes < 1:
            raise ConfigError("max_body_bytes", self.max_body_bytes, "must be at least 1 byte")
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and self.token.strip()):
            raise ConfigError("token", REDACTED, "must be visible ASCII letters, since it travels in an HTTP header")
        if self.token is None and not is_loopback(self.host):
            raise ConfigError(
                "host",
                self.host,
                "other machines could use the models, and no token is set",
                cure=f"Set a secret of your choice in {TOKEN_VARIABLE} (or token=), or bind 127.0.0.1.",
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
