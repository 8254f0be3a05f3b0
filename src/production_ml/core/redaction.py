"""Secrets never reach a log, a run record or a tracking server: keys that name one lose their value."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

REDACTED = "***"
_SECRET_KEY = re.compile(
    r"(^|[_\-.])(token|password|passwd|secret|api_?key|access_?key|private_?key|credentials?)s?$", re.IGNORECASE
)


def is_secret(key: str) -> bool:
    """Whether a setting of that name is likely to hold a secret (`wandb_api_key`, `password`; not `max_tokens`)."""
    return _SECRET_KEY.search(key) is not None and not key.lower().endswith("tokens")


def redact(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `config`, nested mappings included, without the values of secrets."""
    return {
        key: REDACTED if is_secret(str(key)) else redact(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
    }
