"""Names that people choose, kept to letters that are safe in a path, a URL and a `name:version` reference."""

from __future__ import annotations

import re

from production_ml.core.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


def safe_name(text: str) -> str:
    """`text` as a name that `check_name` takes: other letters are replaced, and what is too long is cut off."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", text).lstrip("_.-")[:100] or "run"


def check_name(field: str, name: str) -> str:
    """`name` itself, where it can be one.

    Raises:
        ConfigError: It is empty, too long, or has other letters; `field` says which name it is.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            field,
            name,
            "must begin with a letter or digit and have only letters, digits, '_', '-' and '.' (at most 100)",
        )
    return name
