"""The SQL of the embedded vector store."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, List, Optional, Tuple

from sqlalchemy import (
    BigInteger,
    LargeBinary,
    Text,
    and_,
    bindparam,
    case,
    delete,
    func,
    null,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects import sqlite

from modules.storage.columns import FreeText, JsonValue, UtcDateTime, utc_now
from modules.storage.schema import Identifier
from modules.storage.statements import Statement
from modules.storage.vectors.sqlite_filters import FilterParts, conditions
from modules.storage.vectors.sqlite_models import VectorCollectionRow, VectorRow, VectorTombstoneRow

__all__ = [
    "AGES",
    "BARE",
    "BUMP",
    "CHANGED",
    "COLLECTION",
    "COLLECTIONS",
    "COUNT",
    "COUNT_ALL",
    "CREATE",
    "DELETE",
    "DELETE_COLLECTION",
    "DELETE_ROWS",
    "DELETE_SPACE",
    "DOCUMENTS",
    "FOLLOWING",
    "FORGET_TOMBSTONES",
    "MANY_GONE",
    "SET_TOMBSTONES",
    "STATE",
    "TENANTS",
    "TOMBSTONE",
    "TOMBSTONES",
    "UPSERT",
    "VECTORS",
    "WITHOUT_VECTORS",
    "find",
    "following",
]

_K: Any = VectorCollectionRow.__table__
_V: Any = VectorRow.__table__
_T: Any = VectorTombstoneRow.__table__
_TENANT = bindparam("tenant", type_=Identifier)
_NAME = bindparam("name", type_=Identifier)
_NUMBER = bindparam("collection", type_=BigInteger())
_SPACE = bindparam("space", type_=Identifier)
_CHANGE = bindparam("change", type_=BigInteger())
_CREATED = bindparam("created_at", type_=UtcDateTime())

_MINE = and_(_K.c.tenant_id == _TENANT, _K.c.name == _NAME)
_THIS = and_(_K.c.tenant_id == _TENANT, _K.c.collection_id == _NUMBER)
_ALL_ROWS = and_(_V.c.tenant_id == _TENANT, _V.c.collection_id == _NUMBER)
_ROWS = and_(_ALL_ROWS, _V.c.namespace == _SPACE)
_GRAVES = and_(_T.c.tenant_id == _TENANT, _T.c.collection_id == _NUMBER)
_SPEC = [_K.c.name, _K.c.dimension, _K.c.metric, _K.c.metadata, _K.c.collection_id]
_GIVEN_IDS = _V.c.id.in_(select(func.json_each(bindparam("ids", type_=Text())).table_valued("value").c.value))

COLLECTION = Statement(select(*_SPEC).where(_MINE))
COLLECTIONS = Statement(
    select(
        *_SPEC,
        select(func.count())
        .select_from(_V)
        .where(_V.c.tenant_id == _K.c.tenant_id, _V.c.collection_id == _K.c.collection_id)
        .scalar_subquery(),
    ).where(_K.c.tenant_id == _TENANT)
)
CREATE = Statement(
    sqlite=sqlite.insert(_K)
    .values(
        tenant_id=_TENANT,
        name=_NAME,
        collection_id=_NUMBER,
        dimension=bindparam("dimension", type_=BigInteger()),
        metric=bindparam("metric", type_=Identifier),
        metadata=bindparam("metadata", type_=JsonValue()),
        changes=0,
        changes_known=0,
        tombstones=0,
        created_at=utc_now(),
    )
    .on_conflict_do_nothing()
    .returning(_K.c.collection_id)
)
DELETE_COLLECTION = Statement(sqlite=delete(_K).where(_MINE).returning(_K.c.collection_id))
DELETE_ROWS = Statement(delete(_V).where(_ALL_ROWS))
FORGET_TOMBSTONES = Statement(delete(_T).where(_GRAVES))

#: The next change number of a collection; no row: it is not there any more.
BUMP = Statement(
    sqlite=update(_K).where(_THIS).values(changes=_K.c.changes + 1).returning(_K.c.changes, _K.c.tombstones)
)
STATE = Statement(select(_K.c.changes, _K.c.changes_known).where(_THIS))
TOMBSTONE = Statement(
    sqlite=sqlite.insert(_T).values(
        tenant_id=_TENANT,
        collection_id=_NUMBER,
        namespace=_SPACE,
        change=_CHANGE,
        id=bindparam("id", type_=Identifier),
    )
)
DELETE = Statement(sqlite=delete(_V).where(_ROWS, _GIVEN_IDS).returning(_V.c.id))
DELETE_SPACE = Statement(delete(_V).where(_ROWS))
#: After deletes that left tombstones: how many there are now.
SET_TOMBSTONES = Statement(
    update(_K).where(_THIS).values(tombstones=bindparam("tombstones", type_=BigInteger()))
)
#: After a delete without tombstones: who has seen less than this change loads anew.
MANY_GONE = Statement(update(_K).where(_THIS).values(changes_known=_CHANGE, tombstones=0))
TOMBSTONES = Statement(
    select(_T.c.id, _T.c.change).where(_GRAVES, _T.c.namespace == _SPACE, _T.c.change > bindparam("seen"))
)

_INSERT = sqlite.insert(_V).values(
    tenant_id=_TENANT,
    collection_id=_NUMBER,
    namespace=_SPACE,
    id=bindparam("id", type_=Identifier),
    change=_CHANGE,
    created_at=func.coalesce(_CREATED, utc_now()),
    metadata=bindparam("metadata", type_=JsonValue()),
    content=bindparam("content", type_=FreeText()),
    vector=bindparam("vector", type_=LargeBinary()),
)
UPSERT = Statement(
    sqlite=_INSERT.on_conflict_do_update(
        index_elements=[_V.c.tenant_id, _V.c.collection_id, _V.c.namespace, _V.c.id],
        set_={
            "change": _INSERT.excluded.change,
            "created_at": func.coalesce(_CREATED, _V.c.created_at),
            "metadata": _INSERT.excluded.metadata,
            "content": _INSERT.excluded.content,
            "vector": _INSERT.excluded.vector,
        },
    )
)

#: The next rows of all namespaces in the order of their keys, with their age.
AGES = Statement(
    select(_V.c.namespace, _V.c.id, _V.c.created_at)
    .where(_ALL_ROWS, tuple_(_V.c.namespace, _V.c.id) > tuple_(_SPACE, bindparam("after", type_=Identifier)))
    .order_by(_V.c.namespace, _V.c.id)
    .limit(bindparam("limit", type_=BigInteger()))
)
TENANTS = Statement(select(_K.c.tenant_id).distinct().order_by(_K.c.tenant_id))

COUNT = Statement(select(func.count()).select_from(_V).where(_ROWS))
COUNT_ALL = Statement(select(func.count()).select_from(_V).where(_ALL_ROWS))
_DOCUMENT = [_V.c.id, _V.c.change, _V.c.created_at, _V.c.metadata, _V.c.content, _V.c.vector]
DOCUMENTS = Statement(select(*_DOCUMENT).where(_ROWS, _GIVEN_IDS))
#: The same with nothing in the place of the vector, whose pages then are not read, ...
WITHOUT_VECTORS = Statement(select(*_DOCUMENT[:5], null()).where(_ROWS, _GIVEN_IDS))
#: ... and of metadata and content as well.
BARE = Statement(select(*_DOCUMENT[:3], null(), null(), null()).where(_ROWS, _GIVEN_IDS))
VECTORS = Statement(select(_V.c.id, _V.c.change, _V.c.vector).where(_ROWS, _GIVEN_IDS))
_AFTER = bindparam("after", type_=Identifier)
_LIMIT = bindparam("limit", type_=BigInteger())
#: The next rows in the order of their changes, for a matrix.
CHANGED = Statement(
    select(_V.c.id, _V.c.change, _V.c.vector)
    .where(_ROWS, tuple_(_V.c.change, _V.c.id) > tuple_(bindparam("seen", type_=BigInteger()), _AFTER))
    .order_by(_V.c.change, _V.c.id)
    .limit(_LIMIT)
)
#: The next rows in the order of their ids.
FOLLOWING = Statement(select(*_DOCUMENT).where(_ROWS, _V.c.id > _AFTER).order_by(_V.c.id).limit(_LIMIT))

# Statements of filters, by shape: building and compiling one costs about a millisecond.
_KEPT = 256
_cache: OrderedDict[Any, Statement] = OrderedDict()


def find(parts: Optional[FilterParts], *, everywhere: bool = False) -> Statement:
    """Return the statement that gives (namespace, id, metadata or None) of what passes; metadata: to be decided by `matches`.

    Args:
        parts: The filter; None: all rows, all to be decided.
        everywhere: In all namespaces.
    """
    key = ("find", None if parts is None else parts.shape, everywhere)
    found = _cache.get(key)
    if found is None:
        where, doubt = _filtered(parts)
        clause = select(_V.c.namespace, _V.c.id, doubt).where(_ALL_ROWS if everywhere else _ROWS, *where)
        found = _keep(key, Statement(clause))
    return found


def following(parts: Optional[FilterParts]) -> Statement:
    """Return `FOLLOWING` for what passes a filter: its columns, and a last one that is true where `matches` must decide."""
    key = ("following", None if parts is None else parts.shape)
    found = _cache.get(key)
    if found is None:
        where, doubt = _filtered(parts)
        clause = select(*_DOCUMENT, doubt.is_not(null())).where(_ROWS, _V.c.id > _AFTER, *where)
        found = _keep(key, Statement(clause.order_by(_V.c.id).limit(_LIMIT)))
    return found


def _filtered(parts: Optional[FilterParts]) -> Tuple[List[Any], Any]:
    if parts is None:
        return [], _V.c.metadata
    possible, certain = conditions(parts.shape, _V.c.metadata)
    if not parts.has_numbers:
        return [possible], null()
    return [possible], case((certain, null()), else_=_V.c.metadata)


def _keep(key: Any, statement: Statement) -> Statement:
    _cache[key] = statement
    while len(_cache) > _KEPT:
        _cache.popitem(last=False)
    return statement
