"""Exit codes, and one clear line for every error."""

from __future__ import annotations

from typing import Any, Tuple

from modules.store_common.errors import (
    InvalidValueError,
    MissingDependencyError,
    NotConfiguredError,
    StorageError,
    TenantContextError,
)

__all__ = [
    "FAILED",
    "INTERRUPTED",
    "OK",
    "USAGE",
    "CommandFailedError",
    "CommandUsageError",
    "ReaderGoneError",
    "explain",
    "is_usage_error",
]

OK = 0
FAILED = 1
USAGE = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells count


class CommandFailedError(StorageError):
    """The command could not do what it was told; the message says why."""


class CommandUsageError(StorageError):
    """The command was called in a way that cannot work; the message says how it can."""


class ReaderGoneError(Exception):
    """Whoever read our output has closed the pipe. Not a `BrokenPipeError`: typer would end the process on that."""


def explain(exc: Exception) -> Tuple[int, str]:
    """Return the exit code and the line for `exc`."""
    if is_usage_error(exc):
        return USAGE, _usage(exc)
    if isinstance(exc, TenantContextError):
        return USAGE, "error: this configuration requires a tenant; give --tenant NAME"
    if isinstance(exc, StorageError):
        return (USAGE if _is_configuration(exc) else FAILED), f"error: {_line(exc)}"
    if type(exc).__name__ == "Abort":
        return FAILED, "aborted"
    # Its text may hold anything, so only its type is shown.
    return (
        FAILED,
        f"error: a defect of atlas-storage ({type(exc).__name__}); run again with --debug and report it",
    )


def is_usage_error(exc: Exception) -> bool:
    """True for what the parser of the command line raises."""
    # Looked up by name: typer has click's classes inside itself since 0.20 or so, and click's own before.
    return any(kind.__name__ == "ClickException" for kind in type(exc).__mro__)


def _is_configuration(exc: StorageError) -> bool:
    from modules.storage.import_formats import ImportFileError
    from modules.storage.settings import SettingsError

    kinds = (
        SettingsError,
        NotConfiguredError,
        MissingDependencyError,
        InvalidValueError,
        ImportFileError,
        CommandUsageError,
    )
    return isinstance(exc, kinds)


def _usage(exc: Any) -> str:
    if type(exc).__name__ == "NoArgsIsHelpError":
        return str(exc.format_message())
    context = getattr(exc, "ctx", None)
    hint = f"; see: {context.command_path} --help" if context is not None else ""
    return f"error: {_line(exc.format_message()).rstrip('.')}{hint}"


def _line(text: Any) -> str:
    return " ".join(str(text).split())
