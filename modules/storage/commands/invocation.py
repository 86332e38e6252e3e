"""One call of a command: the options that every command takes, the settings they give, and the storage it opens.

The shared options may stand before or after the command's name; the later one wins.
"""

from __future__ import annotations

import asyncio
import inspect
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    AsyncIterator,
    Awaitable,
    Callable,
    Dict,
    List,
    Mapping,
    Optional,
    get_type_hints,
)

import typer

from modules.storage.commands.errors import INTERRUPTED, OK, ReaderGoneError
from modules.storage.commands.output import Output
from modules.store_common.tenancy import tenant_context

if TYPE_CHECKING:
    from modules.storage.manager import StorageManager
    from modules.storage.settings import StorageSettings

__all__ = ["Invocation", "Options", "command", "group"]


@dataclass(frozen=True)
class Options:
    """The options that every command takes."""

    url: Optional[str] = None
    config: Optional[Path] = None
    tenant: Optional[str] = None
    json: bool = False
    debug: bool = False


def _option(
    name: str, kind: Any, default: Any, text: str, metavar: Optional[str] = None
) -> inspect.Parameter:
    declared = typer.Option(default, f"--{name}", help=text, metavar=metavar, show_default=False)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=declared, annotation=kind)


_SHARED = [
    _option("url", Optional[str], None, "Database: sqlite:///path or postgresql://user@host/name.", "URL"),
    _option(
        "config", Optional[Path], None, "YAML file with a `storage:` block (default: config.yaml).", "FILE"
    ),
    _option("tenant", Optional[str], None, "Whose data (default: the configured tenant).", "NAME"),
    _option("json", bool, False, "Print JSON for programs."),
    _option("debug", bool, False, "Log everything and show tracebacks, on stderr."),
]
_CONTEXT = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)


class Invocation:
    """What a command works with.

    Attributes:
        options: The shared options.
        out: Where it prints.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.out = Output(options.json)

    @cached_property
    def settings(self) -> StorageSettings:
        """Environment over YAML over the defaults, and `--url` over all."""
        from modules.storage.settings import StorageSettings

        settings = StorageSettings.load(self.options.config)
        if self.options.url is not None:
            settings = settings.merged_with({"sql": {"url": self.options.url}})
        return settings

    @asynccontextmanager
    async def storage(
        self, *, background: bool = False, overrides: Optional[Mapping[str, Any]] = None
    ) -> AsyncIterator[StorageManager]:
        """Open the storage for the block, as the tenant of `--tenant`.

        Args:
            background: As for `StorageManager`: for commands that run for long.
            overrides: Settings that this command wants otherwise.
        """
        from modules.storage.manager import StorageManager

        settings = self.settings.merged_with(overrides) if overrides else self.settings
        with self.as_tenant():
            async with StorageManager(settings, background=background) as storage:
                yield storage

    def as_tenant(self) -> Any:
        """Return the context in which calls are those of `--tenant`."""
        return nullcontext() if self.options.tenant is None else tenant_context(self.options.tenant)


_Command = Callable[..., Awaitable[Optional[int]]]


def command(app: typer.Typer, name: str) -> Callable[[_Command], _Command]:
    """Make `async def f(call: Invocation, *, own options)` a command; its first docstring line is its help."""

    def decorate(function: _Command) -> _Command:
        hints = get_type_hints(function)
        own = [
            parameter.replace(annotation=hints[parameter.name], kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in list(inspect.signature(function).parameters.values())[1:]
        ]

        def call(**given: Any) -> int:
            options = _merged(given.pop("context"), given)
            try:
                return asyncio.run(_awaited(function(Invocation(options), **given))) or OK
            except BrokenPipeError as exc:
                raise ReaderGoneError from exc
            except KeyboardInterrupt:
                return INTERRUPTED

        _show(call, [_CONTEXT, *own, *_SHARED])
        app.command(name, help=inspect.getdoc(function))(call)
        return function

    return decorate


def group(app: typer.Typer) -> None:
    """Let the shared options stand before the name of a command of `app`."""

    def remember(**given: Any) -> None:
        context = given.pop("context")
        context.obj = _merged(context, given)

    _show(remember, [_CONTEXT, *_SHARED])
    app.callback()(remember)


async def _awaited(outcome: Awaitable[Optional[int]]) -> Optional[int]:
    return await outcome


def _show(function: Any, parameters: List[inspect.Parameter]) -> None:
    """Give `function` the signature from which typer makes the command line."""
    function.__signature__ = inspect.Signature(parameters)
    function.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}


def _merged(context: typer.Context, given: Dict[str, Any]) -> Options:
    """Take the shared options out of `given` and lay them over those that stood further left."""
    before: Options = context.obj if isinstance(context.obj, Options) else Options()
    names = [parameter.name for parameter in _SHARED]
    mine = {name: given.pop(name) for name in names}
    return replace(before, **{name: value for name, value in mine.items() if value not in (None, False)})
