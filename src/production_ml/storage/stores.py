"""Object stores: kinds by the scheme of their URL."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit

from production_ml.core.errors import ConfigError
from production_ml.core.plugins import PluginFamily, PluginLocation
from production_ml.core.redaction import REDACTED, redact_text
from production_ml.storage.base import ObjectStore

_FSSPEC: Final = "production_ml.storage.object_store:FsspecStore"

STORES: PluginFamily[ObjectStore] = PluginFamily(
    "object store",
    entry_points="production_ml.stores",
    table={
        "file": PluginLocation("production_ml.storage.local:LocalStore"),
        "s3": PluginLocation("production_ml.storage.s3:S3Store", extra="s3"),
        "gs": PluginLocation(_FSSPEC, extra="gcs"),
        "gcs": PluginLocation(_FSSPEC, extra="gcs"),
        "abfs": PluginLocation(_FSSPEC, extra="azure"),
        "memory": PluginLocation(_FSSPEC, extra="s3"),
    },
)

_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def is_store_url(place: str) -> bool:
    """Whether `place` is a URL (`s3://bucket/run`), and not a path."""
    return _SCHEME.match(place) is not None


def open_store(url: str) -> ObjectStore:
    """The store at `url`; a scheme that is not in the table is asked of fsspec.

    Nothing is asked of a server yet.

    Raises:
        ConfigError: The URL holds credentials or options, or nobody knows its scheme.
        MissingDependencyError: The package for it is not installed.
    """
    scheme = _SCHEME.match(url)
    name = scheme[1].lower() if scheme else "file"
    if scheme:
        _check_plain(url)
    return load_kind(name)(url)


def load_kind(scheme: str) -> type[ObjectStore]:
    """The class for URLs of `scheme`.

    Raises:
        MissingDependencyError: The package for it is not installed.
    """
    return STORES.load(scheme if scheme in STORES.names() else "memory")


def _check_plain(url: str) -> None:
    """Refuse secrets in a URL: it will stand in logs, errors and run records."""
    parts = urlsplit(url)
    # abfs://container@account is a name, not a secret.
    has_password = ":" in parts.netloc.rpartition("@")[0]
    if has_password or parts.query or parts.fragment:
        shown = redact_text(url.partition("?")[0].partition("#")[0]) + (f"?{REDACTED}" if parts.query else "")
        raise ConfigError(
            "url",
            shown,
            "must hold neither credentials nor options",
            cure="Give them by the environment (for S3: AWS_ACCESS_KEY_ID, AWS_PROFILE, AWS_ENDPOINT_URL_S3, …).",
        )
