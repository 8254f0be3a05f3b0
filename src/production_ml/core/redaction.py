"""Secrets never reach a log, a run record or a tracking server: what a key or a URL calls one loses its value."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

REDACTED = "***"
_NAME = r"(?:token|authorization|(?:password|passwd|secret|(?:api|access|private)[_-]?key|credential)s?)"
_SECRET_KEY = re.compile(rf"(?:^|[_\-.]){_NAME}$", re.IGNORECASE)
# All of it: a token stands as often before the colon (https://TOKEN@…, https://TOKEN:x-oauth-basic@…) as after it.
_USERINFO = re.compile(r"""(://)[^/\s"'<>]*@""")
# `key` and signatures are secrets in a query (Google, S3 and Azure URLs) but not as names of settings.
_ASSIGNED = re.compile(
    rf"""((?:(?<![A-Za-z0-9]){_NAME}|[?&](?:key|sig|(?:x-(?:amz|goog)-)?signature))=)"""
    r"""(?:"[^"]*"|'[^']*'|[^\s&#"'<>]+)""",
    re.IGNORECASE,
)


def is_secret(key: str) -> bool:
    """Whether a setting of that name is likely to hold a secret (`wandb_api_key`, `password`; not `max_tokens`)."""
    return _SECRET_KEY.search(key) is not None


def redact(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `config`, what is nested in it included, without the values of secrets."""
    return {key: REDACTED if is_secret(str(key)) else _redact_value(value) for key, value in config.items()}


def redact_text(text: str) -> str:
    """`text` without the secrets in its URLs (`https://x@host`, `?token=x`), and without any `password=x`."""
    return _ASSIGNED.sub(rf"\1{REDACTED}", _USERINFO.sub(rf"\1{REDACTED}@", text))


def redact_command(words: Sequence[str]) -> list[str]:
    """A copy of a command line without secrets: `--api-key=x`, `--api-key x`, `+db.password=x`, `https://x@host`."""
    shown: list[str] = []
    follows_secret = False
    for word in words:
        option, equals, _ = word.partition("=")
        names_secret = is_secret(option.lstrip("-+"))
        if follows_secret and not word.startswith("-"):
            shown.append(REDACTED)
        elif names_secret and equals:
            # The whole word, spaces too; what stands before the sign may be a URL with a secret of its own.
            shown.append(f"{redact_text(option)}={REDACTED}")
        else:
            shown.append(redact_text(word))
        follows_secret = names_secret and not equals and word.startswith("-")
    return shown


def _redact_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return redact(value)
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, list | tuple):
        return [_redact_value(item) for item in value]
    return value
