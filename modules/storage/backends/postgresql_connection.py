"""One PostgreSQL connection: how it is opened, and the `Transaction` that operations see on it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Sequence

import asyncpg

from modules.storage.backends.postgresql_errors import DRIVER_ERRORS, translate, translate_connecting
from modules.storage.backends.postgresql_tls import TLSOptions
from modules.store_common.deadlines import within
from modules.store_common.errors import DeadlineExceededError, StatementError, UnavailableError

if TYPE_CHECKING:
    from modules.storage.statements import Row, Statement

__all__ = ["PostgresOptions", "PostgresTransaction", "connect", "remaining"]


@dataclass(frozen=True)
class PostgresOptions:
    """How connections to one database are opened.

    Attributes:
        dsn: The URL with its secret; never shown.
        tls: How it is protected, and whom it believes.
        application_name: Shown in `pg_stat_activity`.
        connect_timeout_s: Longest time to open a connection, in seconds.
        command_timeout_s: The server ends a statement after this many seconds, too.
        transaction_pooling: A pooler in transaction mode is in front: no named statements, no session settings.
        startup_settings: False behind any pooler: PgBouncer refuses start-up parameters that it does not track.
    """

    dsn: str = field(repr=False)
    tls: TLSOptions = field(default_factory=TLSOptions)
    application_name: str = "atlas-storage"
    connect_timeout_s: float = 10.0
    command_timeout_s: float = 30.0
    transaction_pooling: bool = False
    startup_settings: bool = True


def remaining(deadline: float) -> float:
    """Return the seconds left until the monotonic `deadline`.

    Raises:
        DeadlineExceededError: none are.
    """
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise DeadlineExceededError(
            "the PostgreSQL call passed its deadline before its next statement was sent"
        )
    return seconds


def _server_settings(options: PostgresOptions) -> Dict[str, str]:
    settings = {"application_name": options.application_name}
    if options.startup_settings:
        # PgBouncer refuses start-up parameters that it does not track; without a pooler the server watches the time too
        settings["statement_timeout"] = str(int(options.command_timeout_s * 1000))
        settings["idle_in_transaction_session_timeout"] = str(
            int(max(60.0, 2 * options.command_timeout_s) * 1000)
        )
        # our statements are short: compiling them to machine code costs more than it saves
        settings["jit"] = "off"
    return settings


async def connect(options: PostgresOptions, deadline: float) -> asyncpg.Connection[Any]:
    """Open a connection. A server that is starting up is asked again until the deadline.

    Raises:
        UnavailableError: the server cannot be reached.
        PermissionDeniedError: it refused the user.
        DeadlineExceededError: it did not answer in time.
    """
    while True:
        timeout = min(options.connect_timeout_s, remaining(deadline))
        try:
            # asyncpg's own time-out does not cover every step of TLS and start-up
            return await within(
                asyncpg.connect(
                    options.dsn,
                    ssl=options.tls.for_asyncpg(),
                    timeout=timeout + 1.0,
                    statement_cache_size=0 if options.transaction_pooling else 256,
                    max_cached_statement_lifetime=0,
                    server_settings=_server_settings(options),
                ),
                timeout,
                discard=lambda connection: connection.terminate(),
            )
        except asyncpg.CannotConnectNowError as exc:
            if remaining(deadline) < 0.2:
                raise translate(exc) from exc
            await asyncio.sleep(0.05)
        except asyncio.TimeoutError as exc:
            raise UnavailableError(
                f"PostgreSQL did not answer within {timeout:.1f} s while connecting"
            ) from exc
        except (ValueError, *DRIVER_ERRORS) as exc:
            if type(exc) is ConnectionError and options.tls.mode not in ("disable", "prefer"):
                # asyncpg's own; what the operating system raises is a subclass
                raise UnavailableError(
                    "the PostgreSQL server does not speak TLS, and sql.tls_mode asks for it; set it up on the server, "
                    "or set sql.tls_mode to prefer if the network is trusted"
                ) from exc
            raise translate_connecting(exc) from exc


class PostgresTransaction:
    """`modules.storage.operations.Transaction` on an asyncpg connection, with a deadline for each statement."""

    __slots__ = ("_connection", "_deadline")

    dialect = "postgresql"

    def __init__(self, connection: asyncpg.Connection[Any], deadline: float) -> None:
        self._connection = connection
        self._deadline = deadline

    async def all(self, statement: Statement, **params: Any) -> List[Row]:
        compiled = statement.compiled("postgresql")
        values = compiled.bind(params)
        try:
            records = await self._connection.fetch(compiled.sql, *values, timeout=remaining(self._deadline))
        except DRIVER_ERRORS as exc:
            raise translate(exc) from exc
        return (
            [tuple(record) for record in records]
            if compiled.decode is None
            else [compiled.decode(r) for r in records]
        )

    async def first(self, statement: Statement, **params: Any) -> Optional[Row]:
        compiled = statement.compiled("postgresql")
        values = compiled.bind(params)
        try:
            record = await self._connection.fetchrow(compiled.sql, *values, timeout=remaining(self._deadline))
        except DRIVER_ERRORS as exc:
            raise translate(exc) from exc
        if record is None:
            return None
        return tuple(record) if compiled.decode is None else compiled.decode(record)

    async def one(self, statement: Statement, **params: Any) -> Row:
        row = await self.first(statement, **params)
        if row is None:
            raise StatementError("a statement that always gives a row gave none")
        return row

    async def run(self, statement: Statement, **params: Any) -> int:
        compiled = statement.compiled("postgresql")
        values = compiled.bind(params)
        try:
            status = await self._connection.execute(compiled.sql, *values, timeout=remaining(self._deadline))
        except DRIVER_ERRORS as exc:
            raise translate(exc) from exc
        count = status.rpartition(" ")[2]
        return int(count) if count.isdigit() else 0

    async def run_many(self, statement: Statement, rows: Sequence[Mapping[str, Any]]) -> None:
        compiled = statement.compiled("postgresql")
        values = [compiled.bind(row) for row in rows]
        try:
            await self._connection.executemany(compiled.sql, values, timeout=remaining(self._deadline))
        except DRIVER_ERRORS as exc:
            raise translate(exc) from exc

    async def control(self, verb: str) -> None:
        """Send BEGIN, COMMIT or ROLLBACK."""
        try:
            await self._connection.execute(verb, timeout=remaining(self._deadline))
        except DRIVER_ERRORS as exc:
            raise translate(exc) from exc
