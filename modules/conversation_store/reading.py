"""Room: reading messages in bulk: pages, the last few, streams, and what happened to them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, AsyncIterator, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

from sqlalchemy import (
    BigInteger,
    String,
    Text,
    any_,
    bindparam,
    cast,
    func,
    literal_column,
    null,
    select,
    text,
    tuple_,
    type_coerce,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from modules.conversation_store.encoding import check_label, check_limit, check_optional_integer, check_status
from modules.conversation_store.messages import READABLE
from modules.conversation_store.metadata_filter import MetadataFilter, Shape, sqlite_conditions
from modules.conversation_store.models import ConversationRow, MessageEventRow, MessageRow
from modules.conversation_store.records import Message, MessageEvent, Page, page_of
from modules.conversation_store.rows import EVENT_COLUMNS, MESSAGE_COLUMNS, to_event, to_message
from modules.storage.columns import JsonValue
from modules.storage.operations import Executor, Store, Transaction, read
from modules.storage.statements import Row, Statement
from modules.store_common.cursors import decode_cursor, encode_cursor
from modules.store_common.errors import InvalidValueError
from modules.store_common.values import check_identifier, encode_json

__all__ = [
    "EVENTS",
    "RECENT",
    "RECENT_BATCH",
    "Fetch",
    "Reading",
    "fetch",
    "fetch_events",
    "load_recent",
    "stream",
]

_M, _C, _E = MessageRow, ConversationRow, MessageEventRow
_LIMIT = bindparam("limit", type_=BigInteger)
# Rows a stream reads at a time: enough to hide the round trip, few enough to hold.
_STREAM_PAGE = 500

_RECENT = READABLE.where(_M.deleted_at.is_(None)).order_by(_M.sequence.desc()).limit(_LIMIT)
RECENT = Statement(_RECENT)

_RECENT_COLUMNS = ", ".join(f"m.{column.name}" for column in MESSAGE_COLUMNS)
RECENT_BATCH = Statement(
    postgresql=text(
        f"SELECT g.n, {_RECENT_COLUMNS} "
        "FROM unnest(:tenants, :conversations, :limits) WITH ORDINALITY AS g (tenant_id, conversation_id, most, n) "
        "JOIN atlas_conversations c ON c.tenant_id = g.tenant_id AND c.id = g.conversation_id AND c.status <> 'deleted' "
        "CROSS JOIN LATERAL (SELECT * FROM atlas_messages m WHERE m.tenant_id = g.tenant_id "
        "AND m.conversation_id = g.conversation_id AND m.deleted_at IS NULL ORDER BY m.sequence DESC LIMIT g.most) m "
        "ORDER BY g.n, m.sequence"
    )
    .bindparams(
        bindparam("tenants", type_=ARRAY(Text())),
        bindparam("conversations", type_=ARRAY(Text())),
        bindparam("limits", type_=ARRAY(BigInteger())),
    )
    .columns(literal_column("n", BigInteger).label("n"), *MESSAGE_COLUMNS)
)


async def _recent_batch(tx: Transaction, calls: Sequence[Tuple[Any, ...]]) -> Sequence[List[Message]]:
    if tx.dialect == "sqlite":
        return [await _recent(tx, *call) for call in calls]
    found: List[List[Message]] = [[] for _ in calls]
    tenants, conversations, limits = [list(column) for column in zip(*calls)]
    for row in await tx.all(RECENT_BATCH, tenants=tenants, conversations=conversations, limits=limits):
        found[row[0] - 1].append(to_message(row[1:]))
    return found


async def _recent(tx: Transaction, tenant_id: str, conversation_id: str, limit: int) -> List[Message]:
    rows = await tx.all(RECENT, tenant_id=tenant_id, conversation_id=conversation_id, limit=limit)
    rows.reverse()
    return [to_message(row) for row in rows]


@read(batch=_recent_batch)
async def load_recent(tx: Transaction, tenant_id: str, conversation_id: str, limit: int) -> List[Message]:
    """Return the last messages, oldest first."""
    return await _recent(tx, tenant_id, conversation_id, limit)


def _one_of(column: Any, name: str, dialect: str) -> Any:
    if dialect == "postgresql":
        return column == any_(bindparam(name, type_=ARRAY(Text())))
    return column.in_(select(func.json_each(bindparam(name, type_=Text())).table_valued("value").c.value))


@lru_cache(maxsize=256)
def _fetch_statement(
    lists: Tuple[str, ...], shape: Optional[Shape], backward: bool, include_deleted: bool
) -> Statement:
    forms = {}
    for dialect in ("sqlite", "postgresql"):
        query = READABLE
        for name in lists:
            query = query.where(_one_of(getattr(_M, name), name, dialect))
        if not include_deleted:
            query = query.where(_M.deleted_at.is_(None))
        if shape is not None and dialect == "sqlite":
            query = query.where(*sqlite_conditions(shape, _M.metadata_))
        elif shape is not None:
            document = cast(bindparam("document", type_=Text()), JSONB)
            query = query.where(cast(_M.metadata_, JSONB).op("@>")(document))
        query = query.where(_M.sequence > bindparam("after"), _M.sequence < bindparam("before"))
        forms[dialect] = query.order_by(_M.sequence.desc() if backward else _M.sequence).limit(_LIMIT)
    return Statement(postgresql=forms["postgresql"], sqlite=forms["sqlite"])


class Fetch(NamedTuple):
    """Which messages of a conversation.

    Attributes:
        lists: Names of columns -> the values that they may have.
        metadata: Condition on the metadata, None for none.
        backward: From the newest on.
        include_deleted: Soft-deleted ones, too.
    """

    lists: Mapping[str, List[str]]
    metadata: Optional[MetadataFilter]
    backward: bool
    include_deleted: bool


@read
async def fetch(tx: Transaction, which: Fetch, params: Mapping[str, Any]) -> List[Row]:
    """Return messages after and before the sequences in `params`, up to its `limit`."""
    lists, wanted = which.lists, which.metadata
    statement = _fetch_statement(tuple(lists), wanted and wanted.shape, which.backward, which.include_deleted)
    if wanted is not None:
        params = {**params, **wanted.params, "document": wanted.document}
    arrays: Dict[str, Any] = dict(lists)
    if tx.dialect == "sqlite":
        arrays = {name: encode_json(values, name) for name, values in lists.items()}
    return await tx.all(statement, **arrays, **params)


_ONE = type_coerce(literal_column("1"), BigInteger)
_CREATED = (
    select(
        _M.conversation_id,
        _M.sequence,
        _ONE.label("version"),
        _M.id.label("message_id"),
        type_coerce(literal_column("'created'"), String).label("type"),
        type_coerce(null(), JsonValue).label("former"),
        _M.author_id.label("actor_id"),
        _M.created_at,
    )
    .join(_C, (_C.tenant_id == _M.tenant_id) & (_C.id == _M.conversation_id))
    .where(
        _M.tenant_id == bindparam("tenant_id"),
        _M.conversation_id == bindparam("conversation_id"),
        _C.status != "deleted",
    )
)
_CHANGED = (
    select(*EVENT_COLUMNS)
    .join(_C, (_C.tenant_id == _E.tenant_id) & (_C.id == _E.conversation_id))
    .where(
        _E.tenant_id == bindparam("tenant_id"),
        _E.conversation_id == bindparam("conversation_id"),
        _C.status != "deleted",
    )
)


def _events_statement(of_message: bool) -> Statement:
    at = tuple_(bindparam("sequence", type_=BigInteger), bindparam("version", type_=BigInteger))
    created = _CREATED.where(tuple_(_M.sequence, _ONE) > at)
    changed = _CHANGED.where(tuple_(_E.sequence, _E.version) > at)
    if of_message:
        created = created.where(_M.id == bindparam("message_id"))
        changed = changed.where(_E.message_id == bindparam("message_id"))
    both = created.union_all(changed)
    return Statement(
        both.order_by(both.selected_columns.sequence, both.selected_columns.version).limit(_LIMIT)
    )


EVENTS = {of_message: _events_statement(of_message) for of_message in (False, True)}


@read
async def fetch_events(tx: Transaction, params: Mapping[str, Any]) -> List[MessageEvent]:
    """Return events in order, of the message `message_id` if `params` names one."""
    return [to_event(row) for row in await tx.all(EVENTS["message_id" in params], **params)]


def _labels(value: Union[str, Sequence[str], None], name: str) -> Optional[List[str]]:
    if value is None:
        return None
    values = [value] if isinstance(value, str) else list(value)
    if not 1 <= len(values) <= 50:
        raise InvalidValueError(f"{name} must be one name or 1 to 50 of them")
    check = check_status if name == "status" else (lambda item: check_label(item, name))
    return sorted({check(item) for item in values})


async def stream(
    executor: Executor, tenant_id: str, conversation_id: str, after: int, include_deleted: bool
) -> AsyncIterator[Message]:
    """Iterate over messages by pages."""
    which = Fetch({}, None, False, include_deleted)
    params = {
        "tenant_id": tenant_id,
        "conversation_id": conversation_id,
        "limit": _STREAM_PAGE,
        "before": 2**62,
    }
    while True:
        rows = await executor.run(fetch, which, {**params, "after": after})
        for row in rows:
            message = to_message(row)
            after = message.sequence
            yield message
        if len(rows) < _STREAM_PAGE:
            return


_Labels = Union[str, Sequence[str], None]


class Reading(Store):
    """Messages in bulk. A conversation that does not exist has no messages: these calls give nothing for it."""

    async def fetch_messages(
        self,
        conversation_id: str,
        *,
        role: _Labels = None,
        message_type: _Labels = None,
        status: _Labels = None,
        metadata: Optional[Mapping[str, Any]] = None,
        after_sequence: Optional[int] = None,
        before_sequence: Optional[int] = None,
        backward: bool = False,
        include_deleted: bool = False,
        limit: int = 100,
        cursor: Optional[str] = None,
        tenant_id: Optional[str] = None,
    ) -> Page[Message]:
        """Return a page of messages.

        Args:
            conversation_id: Whose messages.
            role: Only of this role, or one of these.
            message_type: Only of this type, or one of these.
            status: Only of this status, or one of these.
            metadata: Only with these values: {"lang": "en", "run.step": 3}. A dot goes one level down; values are str,
                number, bool or None and compare as in JSON.
            after_sequence: Only later ones.
            before_sequence: Only earlier ones.
            backward: From the newest to the oldest.
            include_deleted: Soft-deleted ones, too.
            limit: 1 to 10,000.
            cursor: `next_cursor` of the page before, with the same arguments.
            tenant_id: Whose; see `TenantPolicy`.
        """
        tenant = self._tenant(tenant_id)
        check_identifier(conversation_id, "conversation_id")
        given = {
            "role": _labels(role, "role"),
            "type": _labels(message_type, "type"),
            "status": _labels(status, "status"),
        }
        lists = {name: values for name, values in given.items() if values is not None}
        wanted = None if metadata is None else MetadataFilter(metadata)
        after = check_optional_integer(after_sequence, "after_sequence") or 0
        before = check_optional_integer(before_sequence, "before_sequence")
        filters = [
            conversation_id,
            lists,
            wanted and wanted.canonical,
            after,
            before,
            backward,
            include_deleted,
        ]
        position = decode_cursor(cursor, tenant, "messages", 1, filters=filters)
        params: Dict[str, Any] = {"after": after, "before": 2**62 if before is None else before}
        if position is not None:
            params["before" if backward else "after"] = position[0]
        params.update(tenant_id=tenant, conversation_id=conversation_id, limit=check_limit(limit) + 1)
        which = Fetch(lists, wanted, bool(backward), bool(include_deleted))
        found = [to_message(row) for row in await self._executor.run(fetch, which, params)]
        if len(found) <= limit:
            return page_of(found, None)
        last = found[limit - 1].sequence
        return page_of(found[:limit], encode_cursor(tenant, "messages", [last], filters=filters))

    async def load_recent_messages(
        self, conversation_id: str, limit: int = 50, *, tenant_id: Optional[str] = None
    ) -> List[Message]:
        """Return the last `limit` messages that are not deleted, oldest first: what a model's context is made of.

        One statement that reads `limit` index entries, however many messages there are.
        """
        key = self._tenant(tenant_id), check_identifier(conversation_id, "conversation_id")
        return await self._executor.run(load_recent, *key, check_limit(limit))

    def stream_messages(
        self,
        conversation_id: str,
        *,
        after_sequence: int = 0,
        include_deleted: bool = False,
        tenant_id: Optional[str] = None,
    ) -> AsyncIterator[Message]:
        """Iterate over all messages, oldest first, in constant memory: `async for message in store.stream_messages(...)`.

        Messages added meanwhile are part of it. The tenant is that of this call.
        """
        tenant = self._tenant(tenant_id)
        check_identifier(conversation_id, "conversation_id")
        after = check_optional_integer(after_sequence, "after_sequence") or 0
        return stream(self._executor, tenant, conversation_id, after, bool(include_deleted))

    async def fetch_message_events(
        self,
        conversation_id: str,
        *,
        message_id: Optional[str] = None,
        limit: int = 100,
        cursor: Optional[str] = None,
        tenant_id: Optional[str] = None,
    ) -> Page[MessageEvent]:
        """Return what happened to the messages, by message and version: created, edited, deleted.

        Args:
            conversation_id: Whose messages.
            message_id: Only this message, deleted or not.
            limit: 1 to 10,000.
            cursor: `next_cursor` of the page before, with the same arguments.
            tenant_id: Whose; see `TenantPolicy`.
        """
        tenant = self._tenant(tenant_id)
        params: Dict[str, Any] = {
            "tenant_id": tenant,
            "conversation_id": check_identifier(conversation_id, "conversation_id"),
        }
        if message_id is not None:
            params["message_id"] = check_identifier(message_id, "message_id")
        filters = [conversation_id, message_id]
        position = decode_cursor(cursor, tenant, "message_events", 2, filters=filters) or [0, 0]
        params.update(sequence=position[0], version=position[1], limit=check_limit(limit) + 1)
        found = await self._executor.run(fetch_events, params)
        if len(found) <= limit:
            return page_of(found, None)
        last = found[limit - 1]
        position = [last.sequence, last.version]
        return page_of(found[:limit], encode_cursor(tenant, "message_events", position, filters=filters))
