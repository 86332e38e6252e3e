"""`${NAME}` in a settings file: the value of an environment variable, so that the file needs no secret.

    sql:
      url: ${DATABASE_URL}
      pool: {size: "${POOL_SIZE:-5}"}

`${NAME:-text}` falls back to `text` when the variable is unset or empty; `$${` stands for `${`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

__all__ = ["UnresolvedReferenceError", "has_reference", "resolve"]

_REFERENCE = re.compile(r"\$(?P<escaped>\$\{)|\$\{(?P<body>[^}]*)\}")
_BODY = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>.*))?\Z", re.DOTALL)


class UnresolvedReferenceError(ValueError):
    """A reference has no value; the message holds none either. Becomes a `SettingsError` that names the place."""


def has_reference(value: Any) -> bool:
    """True for text with a `${...}` in it."""
    return isinstance(value, str) and "${" in value


def resolve(text: str, environ: Mapping[str, str]) -> str:
    """Put the values of variables in the places of their references.

    Raises:
        UnresolvedReferenceError: a variable is not set and there is no default, or a reference is malformed. Holds no value.
    """

    def value_of(match: re.Match[str]) -> str:
        if match["escaped"]:
            return "${"
        body = _BODY.match(match["body"])
        if body is None:
            raise UnresolvedReferenceError("has a malformed reference; write ${NAME} or ${NAME:-default}")
        found = environ.get(body["name"], "")
        if found.strip():
            return found
        if body["default"] is None:
            raise UnresolvedReferenceError(
                f"refers to the environment variable {body['name']}, which is not set"
            )
        return body["default"]

    return _REFERENCE.sub(value_of, text)
