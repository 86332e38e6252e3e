"""Writing settings: the `storage:` block of a YAML file, with references in the place of secrets.

The rest of the file is kept to the byte, comments too.
"""

from __future__ import annotations

import os
import re
import tempfile
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import SecretStr

from .settings import SecretUrl, SettingsError, StorageSettings
from .settings_sources import Setting

__all__ = ["Block", "has_block", "render_block", "write_block"]

# The top-level key and its indented lines; comments and blank lines after the last of them belong to what follows.
_BLOCK = re.compile(
    r"^storage[ \t]*:.*(?:\n|\Z)(?:(?:[ \t]*(?:#.*)?\n)*[ \t]+[^\s#].*(?:\n|\Z))*", re.MULTILINE
)


class Block(NamedTuple):
    """A `storage:` block as text, and the environment variables that it refers to."""

    text: str
    variables: tuple[str, ...]


def render_block(settings: StorageSettings, *, plain_secrets: bool = False) -> Block:
    """Return the block that gives `settings` when it is read again.

    Args:
        settings: What differs from the defaults is written.
        plain_secrets: Write secrets as they are; otherwise `${NAME}` of the setting's own variable stands for them.
    """
    import yaml

    nested: dict[str, Any] = {}
    variables: list[str] = []
    for row, value in settings.chosen():
        target = nested
        for name in row.path[:-1]:
            target = target.setdefault(name, {})
        if isinstance(value, SecretStr) and not plain_secrets and _holds_a_secret(value):
            variables.append(row.env)
            target[row.path[-1]] = f"${{{row.env}}}"
        else:
            target[row.path[-1]] = _plain(row, value)
    text = yaml.safe_dump({"storage": nested}, sort_keys=False, allow_unicode=True)
    return Block(text, tuple(variables))


def _holds_a_secret(value: SecretStr) -> bool:
    return not isinstance(value, SecretUrl) or str(value) != value.get_secret_value()


def _plain(row: Setting, value: Any) -> Any:
    shown = value.get_secret_value() if isinstance(value, SecretStr) else value
    shown = shown.value if isinstance(shown, Enum) else shown
    return shown.replace("${", "$${") if isinstance(shown, str) else shown


def has_block(path: Path) -> bool:
    """Whether the file is there and has a `storage:` block."""
    return _BLOCK.search(_read(path)) is not None


def write_block(path: Path, block: Block) -> None:
    """Put the block into the file, in the place of the one that is there; the file appears whole or not at all.

    Raises:
        SettingsError: the file cannot be read or written; it is as it was.
    """
    text = _read(path)
    found = _BLOCK.search(text)
    if found is None:
        gap = "" if not text else "\n" if text.endswith("\n") else "\n\n"
        text = f"{text}{gap}{block.text}"
    else:
        text = text[: found.start()] + block.text + text[found.end() :]
    try:
        _replace(path, text)
    except OSError as exc:
        raise SettingsError(
            f"the file cannot be written ({exc.strerror or type(exc).__name__}); it is as it was",
            source=str(path),
        ) from exc


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as exc:
        raise SettingsError(f"the file cannot be read ({type(exc).__name__})", source=str(path)) from exc


def _replace(path: Path, text: str) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        # a new file stays readable for its owner alone, as mkstemp made it: it may hold secrets
        if path.exists():
            os.chmod(name, path.stat().st_mode & 0o777)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink()
        raise
