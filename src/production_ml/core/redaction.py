"""Secrets never reach a log, a run record or a tracking server: what a key or a URL calls one loses its value."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

REDACTED = "***"
_SECRET_KEY = re.compile(
    r"(^|[_\-.])(token|password|passwd|secret|(api|access|private)[_-]?key|credential)s?$", re.IGNORECASE
)
_URL_PASSWORD = re.compile(r"(://[^/\s:@]*:)[^/\s@]+@")


def is_secret(key: str) -> bool:
    """Whether a setting of that name is likely to hold a secret (`wandb_api_key`, `password`; not `max_tokens`)."""
    return _SECRET_KEY.search(key) is not None and not key.lower().endswith("tokens")


def redact(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `config`, what is nested in it included, without the values of secrets."""
    return {key: REDACTED if is_secret(str(key)) else _redact_value(value) for key, value in config.items()}


def redact_command(words: Sequence[str]) -> list[str]:
    """A copy of a command line without secrets: `--api-key=x`, `--api-key x`, `postgresql://user:x@host`."""
    shown: list[str] = []
    follows_secret = False
    for word in words:
        option, equals, _ = word.partition("=")
        names_secret = word.startswith("-") and is_secret(option)
        if follows_secret and not word.startswith("-"):
            shown.append(REDACTED)
        elif names_secret and equals:
            shown.append(f"{option}={REDACTED}")
        else:
            shown.append(_redact_value(word))
        follows_secret = names_secret and not equals
    return shown


def _redact_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return redact(value)
    if isinstance(value, str):
        return _URL_PASSWORD.sub(rf"\1{REDACTED}@", value)
    if isinstance(value, list | tuple):
        return [_redact_value(item) for item in value]
    return value
