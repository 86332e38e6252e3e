"""The tables of the pgvector provider: the registry of collections, and one table for each kind of collection.

They are made when they are needed and not by a migration, since the extension may not be there and their number is the
callers'. The state of an index (see `pgvector_index`) is kept with every registration of its table.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Tuple

import orjson
from sqlalchemy import Text, text
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import ClauseElement, Executable
from sqlalchemy.types import Boolean, Integer

from modules.storage.columns import JsonValue
from modules.storage.operations import Transaction, read, write
from modules.storage.statements import Row, Statement
from modules.storage.vectors.checks import CollectionSpec
from modules.storage.vectors.errors import VectorCollectionError
from modules.storage.vectors.pgvector_options import IndexOptions, physical_name, quote_identifier
from modules.store_common.errors import NotConfiguredError, PermissionDeniedError
from modules.store_common.values import encode_json

__all__ = [
    "REGISTRY",
    "create_collection",
    "delete_collection",
    "list_registrations",
    "list_tenants",
    "open_database",
    "read_registration",
    "save_state",
]

REGISTRY = "atlas_pgvector_collections"
_MINIMUM_VERSION = (0, 8)
# Any number that nobody else takes: "pgv" and a serial
_SETUP_LOCK = 7_370_001

_EXTENSION = Statement(
    text(
        "SELECT a.default_version, e.extversion, n.nspname::text FROM pg_available_extensions AS a"
        " LEFT JOIN pg_extension AS e ON e.extname = a.name LEFT JOIN pg_namespace AS n ON n.oid = e.extnamespace"
        " WHERE a.name = 'vector'"
    ).columns(default_version=Text, extversion=Text, schema=Text)
)
_CREATE_EXTENSION = Statement(text("CREATE EXTENSION IF NOT EXISTS vector"))
_SETUP = Statement(text(f"SELECT pg_advisory_xact_lock({_SETUP_LOCK})"))
_LOCK = Statement(text("SELECT pg_advisory_xact_lock(hashtextextended(CAST(:physical AS text), 7370))"))
_EXISTS = Statement(text("SELECT to_regclass(:physical) IS NOT NULL AS found").columns(found=Boolean))
_CREATE_REGISTRY = Statement(
    text(
        f'CREATE TABLE {REGISTRY} (tenant_id text COLLATE "C" NOT NULL, name text COLLATE "C" NOT NULL,'
        " physical text NOT NULL, dimension integer NOT NULL, metric text NOT NULL, options json NOT NULL,"
        " metadata json NOT NULL, state json NOT NULL, created_at timestamptz NOT NULL DEFAULT statement_timestamp(),"
        f" CONSTRAINT pk_{REGISTRY} PRIMARY KEY (tenant_id, name))"
    )
)
_INDEX_REGISTRY = Statement(text(f"CREATE INDEX ix_{REGISTRY}_physical ON {REGISTRY} (physical)"))

_COLUMNS = "name, physical, dimension, metric, options, metadata, state"
_TYPES: Dict[str, Any] = {
    "name": Text,
    "physical": Text,
    "dimension": Integer,
    "metric": Text,
    "options": JsonValue,
    "metadata": JsonValue,
    "state": JsonValue,
}
_READ = Statement(
    text(f"SELECT {_COLUMNS} FROM {REGISTRY} WHERE tenant_id = :tenant AND name = :name").columns(**_TYPES)
)
_LIST = Statement(
    text(f"SELECT {_COLUMNS} FROM {REGISTRY} WHERE tenant_id = :tenant ORDER BY name").columns(**_TYPES)
)
_TENANTS = Statement(
    text(f"SELECT DISTINCT tenant_id FROM {REGISTRY} ORDER BY tenant_id").columns(tenant_id=Text)
)
_REGISTER = Statement(
    text(
        f"INSERT INTO {REGISTRY} (tenant_id, name, physical, dimension, metric, options, metadata, state)"
        " SELECT CAST(:tenant AS text), CAST(:name AS text), CAST(:physical AS text), :dimension, :metric,"
        " CAST(:options AS text)::json, CAST(:metadata AS text)::json, coalesce("
        f"(SELECT o.state FROM {REGISTRY} AS o WHERE o.physical = CAST(:physical AS text) LIMIT 1), '{{}}'::json)"
        " ON CONFLICT (tenant_id, name) DO NOTHING RETURNING name"
    ).columns(name=Text)
)
_UNREGISTER = Statement(
    text(f"DELETE FROM {REGISTRY} WHERE tenant_id = :tenant AND name = :name RETURNING physical").columns(
        physical=Text
    )
)
_SHARED = Statement(
    text(f"SELECT EXISTS (SELECT 1 FROM {REGISTRY} WHERE physical = :physical) AS found").columns(
        found=Boolean
    )
)
_SAVE_STATE = Statement(
    text(f"UPDATE {REGISTRY} SET state = CAST(:state AS text)::json WHERE physical = :physical")
)


class _Verbatim(Executable, ClauseElement):
    """Text that PostgreSQL itself made and quoted; nothing in it is looked for parameters."""

    inherit_cache = False

    def __init__(self, sql: str) -> None:
        self.sql = sql


@compiles(_Verbatim)
def _compile_verbatim(element: _Verbatim, compiler: Any, **kw: Any) -> str:
    return element.sql


# PostgreSQL quotes the key: DDL takes no parameters.
_INDEX_ON_KEY = Statement(
    text(
        "SELECT format('CREATE INDEX %I ON %I (tenant_id, namespace, (search -> %L::text))',"
        " CAST(:index AS text), CAST(:physical AS text), CAST(:key AS text)) AS sql"
    ).columns(sql=Text)
)


@write
async def open_database(tx: Transaction) -> str:
    """Make extension and registry where they are missing; return the extension's schema.

    Raises:
        NotConfiguredError: pgvector is not installed on the server, or too old.
    """
    found = await tx.first(_EXTENSION)
    if found is None:
        raise NotConfiguredError(
            "the PostgreSQL server has no extension vector; install pgvector 0.8 or newer on the server"
        )
    registered = await tx.one(_EXISTS, physical=REGISTRY)
    if found[1] is None or not registered[0]:
        await tx.first(_SETUP)
        if found[1] is None:
            await _create_extension(tx)
            found = await tx.one(_EXTENSION)
        if not (await tx.one(_EXISTS, physical=REGISTRY))[0]:
            await tx.run(_CREATE_REGISTRY)
            await tx.run(_INDEX_REGISTRY)
    _check_version(str(found[1]), str(found[0]))
    return str(found[2])


async def _create_extension(tx: Transaction) -> None:
    try:
        await tx.run(_CREATE_EXTENSION)
    except PermissionDeniedError as exc:
        raise PermissionDeniedError(
            "the PostgreSQL role may not create the extension vector; let a superuser run CREATE EXTENSION vector"
        ) from exc


def _check_version(installed: str, available: str) -> None:
    if _version(installed) >= _MINIMUM_VERSION:
        return
    way = (
        "run ALTER EXTENSION vector UPDATE"
        if _version(available) >= _MINIMUM_VERSION
        else "install a newer pgvector on the server"
    )
    raise NotConfiguredError(f"pgvector {installed} is too old; 0.8 or newer is needed: {way}")


def _version(given: str) -> Tuple[int, ...]:
    return tuple(int(part) for part in given.split(".") if part.isdigit())


@read
async def read_registration(tx: Transaction, tenant_id: str, name: str) -> Optional[Row]:
    """Return name, physical, dimension, metric, options, metadata and state, None when there is none."""
    return await tx.first(_READ, tenant=tenant_id, name=name)


@read
async def list_registrations(tx: Transaction, tenant_id: str) -> List[Row]:
    """Return what `read_registration` does for every collection of the tenant."""
    return await tx.all(_LIST, tenant=tenant_id)


@read
async def list_tenants(tx: Transaction) -> List[str]:
    """Return the tenants that have collections."""
    return [row[0] for row in await tx.all(_TENANTS)]


@write(atomic=False)
async def save_state(tx: Transaction, physical: str, state: Dict[str, Any]) -> None:
    """Keep the state of a table's index."""
    await tx.run(_SAVE_STATE, physical=physical, state=orjson.dumps(state).decode())


@write
async def create_collection(
    tx: Transaction, tenant_id: str, spec: CollectionSpec, options: IndexOptions
) -> Row:
    """Register a collection, make its table if it is the first of its kind, and return its registration."""
    physical = physical_name(spec, options)
    await tx.first(_LOCK, physical=physical)
    made = await tx.first(
        _REGISTER,
        tenant=tenant_id,
        name=spec.name,
        physical=physical,
        dimension=spec.dimension,
        metric=spec.metric.value,
        options=orjson.dumps(options.to_json()).decode(),
        metadata=encode_json(dict(spec.metadata), "the collection's metadata"),
    )
    if made is None:
        raise VectorCollectionError(f"the vector collection {spec.name!r} exists already")
    if not (await tx.one(_EXISTS, physical=physical))[0]:
        await _create_table(tx, physical, spec.dimension, options)
    return await tx.one(_READ, tenant=tenant_id, name=spec.name)


async def _create_table(tx: Transaction, physical: str, dimension: int, options: IndexOptions) -> None:
    await tx.run(
        Statement(
            text(
                f"CREATE TABLE {quote_identifier(physical)}"
                ' (tenant_id text COLLATE "C" NOT NULL, namespace text COLLATE "C" NOT NULL,'
                ' id text COLLATE "C" NOT NULL,'
                f" embedding {quote_identifier(options.column_type())}({int(dimension)}) NOT NULL,"
                " content text, metadata json NOT NULL, search jsonb NOT NULL, created_at timestamptz NOT NULL,"
                " PRIMARY KEY (tenant_id, namespace, id))"
            )
        )
    )
    width = (2 if options.halfvec else 4) * dimension
    if width <= 6200:
        # beside the other columns, so that a scan needs no second look for each vector; the others move out instead
        await tx.run(
            Statement(
                text(f"ALTER TABLE {quote_identifier(physical)} ALTER COLUMN embedding SET STORAGE PLAIN")
            )
        )
    await tx.run(
        Statement(
            text(
                f"CREATE INDEX {quote_identifier(physical + '_g')} ON {quote_identifier(physical)}"
                " USING gin (search jsonb_path_ops)"
            )
        )
    )
    for position, key in enumerate(options.index_metadata):
        row = await tx.one(_INDEX_ON_KEY, index=f"{physical}_k{position}", physical=physical, key=key)
        await tx.run(Statement(_Verbatim(str(row[0]))))


@write
async def delete_collection(tx: Transaction, tenant_id: str, name: str) -> bool:
    """Remove a registration and its documents; the table goes with the last registration."""
    found = await tx.first(_READ, tenant=tenant_id, name=name)
    if found is None:
        return False
    await tx.first(_LOCK, physical=found[1])
    gone = await tx.first(_UNREGISTER, tenant=tenant_id, name=name)
    if gone is None:
        return False
    physical = str(gone[0])
    if (await tx.one(_SHARED, physical=physical))[0]:
        await tx.run(
            Statement(text(f"DELETE FROM {quote_identifier(physical)} WHERE tenant_id = :tenant")),
            tenant=tenant_id,
        )
    else:
        await tx.run(Statement(text(f"DROP TABLE IF EXISTS {quote_identifier(physical)}")))
    return True
