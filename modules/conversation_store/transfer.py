"""Room: export and import, streaming and idempotent.

An export is plain dicts: for each conversation one with "conversation" (its header), then one with "message" for each of
its messages, all JSON values. An import takes the same, or one conversation with any iterable of messages. Conversations
are told apart by id, messages by their id within the conversation: what is there is skipped, so that an import that broke
off is simply run again.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, AsyncIterator, Dict, Iterable, List, Mapping, Optional, Set, Tuple, Union, cast

from sqlalchemy import BigInteger, Boolean, Text, any_, bindparam, func, select, text, type_coerce, update
from sqlalchemy.dialects.postgresql import ARRAY

from modules.conversation_store.append import Condition, refusal
from modules.conversation_store.append_statements import INSERT
from modules.conversation_store.conversations import (
    ADD_CONVERSATION,
    GET_CONVERSATION,
    get,
    set_status,
)
from modules.conversation_store.encoding import (
    check_optional_id,
    check_optional_text,
    encode_message,
    encode_metadata,
)
from modules.conversation_store.errors import ConversationNotFoundError
from modules.conversation_store.models import ConversationRow, MessageRow
from modules.conversation_store.reading import stream
from modules.conversation_store.records import Conversation, ImportResult, Message, NewMessage
from modules.conversation_store.rows import CONVERSATION_COLUMNS, to_conversation
from modules.conversation_store.search_pending import index_many
from modules.storage.columns import UtcDateTime, utc_now
from modules.storage.operations import Executor, Store, Transaction, read, write
from modules.storage.statements import Statement
from modules.store_common.clock import require_utc
from modules.store_common.errors import InvalidValueError
from modules.store_common.values import check_identifier, encode_json

__all__ = [
    "ANALYZE",
    "HAS_STATISTICS",
    "KNOWN_IDS",
    "LOCK",
    "NEXT_CONVERSATIONS",
    "SET_COUNTER",
    "SET_TIMES",
    "Transfer",
    "add_missing",
    "conversation_record",
    "conversations_after",
    "ensure_header",
    "find_known",
    "message_record",
    "refresh_statistics",
]

_C, _M = ConversationRow, MessageRow
_BATCH = 1000
_PAGE = 100

_HERE = (_C.tenant_id == bindparam("tenant_id"), _C.id == bindparam("conversation_id"))
SET_TIMES = Statement(
    update(_C)
    .where(*_HERE)
    .values(
        created_at=func.coalesce(bindparam("created", type_=UtcDateTime), _C.created_at, type_=UtcDateTime),
        updated_at=func.coalesce(bindparam("updated", type_=UtcDateTime), _C.updated_at, type_=UtcDateTime),
    )
)
_LOCK = select(_C.status, _C.last_sequence, _C.updated_at, type_coerce(utc_now(), UtcDateTime)).where(*_HERE)
LOCK = Statement(_LOCK, postgresql=_LOCK.with_for_update())
SET_COUNTER = Statement(
    update(_C).where(*_HERE).values(last_sequence=bindparam("sequence"), updated_at=bindparam("updated"))
)
_IDS = select(_M.id).where(
    _M.tenant_id == bindparam("tenant_id"), _M.conversation_id == bindparam("conversation_id")
)
KNOWN_IDS = Statement(
    sqlite=_IDS.where(
        _M.id.in_(select(func.json_each(bindparam("ids", type_=Text())).table_valued("value").c.value))
    ),
    postgresql=_IDS.where(_M.id == any_(bindparam("ids", type_=ARRAY(Text())))),
)
# Without statistics PostgreSQL takes the table for empty and looks for an id by scanning its whole conversation. Autovacuum
# makes them within a minute; an import adds tens of thousands of messages before that.
HAS_STATISTICS = Statement(
    postgresql=text(
        "SELECT reltuples >= 0 AND reltuples * 8 >= pg_relation_size(oid) / 400 AS fresh FROM pg_class "
        "WHERE oid = 'atlas_messages'::regclass"
    ).columns(fresh=Boolean)
)
ANALYZE = Statement(postgresql=text("ANALYZE atlas_messages"))
NEXT_CONVERSATIONS = Statement(
    select(*CONVERSATION_COLUMNS)
    .where(_C.tenant_id == bindparam("tenant_id"), _C.id > bindparam("after"), _C.status != "deleted")
    .order_by(_C.id)
    .limit(bindparam("limit", type_=BigInteger))
)

_Messages = Union[
    Iterable[Union[NewMessage, Mapping[str, Any]]], AsyncIterator[Union[NewMessage, Mapping[str, Any]]]
]
_HEADER = frozenset(
    ("id", "title", "user_id", "session_id", "metadata", "created_at", "updated_at", "status")
)


@write
async def ensure_header(tx: Transaction, values: Dict[str, Any], times: Dict[str, Any]) -> bool:
    """Add the conversation unless it is there; say whether it was added."""
    if await tx.first(ADD_CONVERSATION, **values) is not None:
        await tx.run(SET_TIMES, **_key(values), **times)
        return True
    if await tx.first(GET_CONVERSATION, **_key(values)) is None:
        raise ConversationNotFoundError(values["conversation_id"])
    return False


def _key(values: Mapping[str, Any]) -> Dict[str, Any]:
    return {name: values[name] for name in ("tenant_id", "conversation_id")}


@read
async def find_known(tx: Transaction, key: Dict[str, Any], ids: List[str]) -> Set[str]:
    """Return those of the message ids that the conversation has, deleted ones too."""
    given: Any = encode_json(ids, "ids") if tx.dialect == "sqlite" else ids
    return {row[0] for row in await tx.all(KNOWN_IDS, **key, ids=given)}


@write
async def add_missing(
    tx: Transaction, key: Dict[str, Any], messages: List[Dict[str, Any]], keep_updated: bool
) -> int:
    """Append the messages whose ids are new, in the given order; return how many."""
    row = await tx.first(LOCK, **key)
    if row is None or row[0] != "active":
        raise await refusal(tx, **key, condition=Condition())
    _, sequence, updated, now = row
    known = await find_known(tx, key, [fields["id"] for fields in messages])
    rows = []
    for fields in messages:
        if fields["id"] in known:
            continue
        known.add(fields["id"])
        sequence += 1
        created = fields["created_at"] or now
        rows.append({**fields, **key, "sequence": sequence, "created_at": created})
        if not keep_updated and created > updated:
            updated = created
    await tx.run_many(INSERT, rows)
    await index_many(tx, len(rows))
    await tx.run(SET_COUNTER, **key, sequence=sequence, updated=updated)
    return len(rows)


@write
async def refresh_statistics(tx: Transaction) -> None:
    """Let PostgreSQL know how many messages there are, if it does not."""
    if tx.dialect == "postgresql" and not (await tx.one(HAS_STATISTICS))[0]:
        await tx.run(ANALYZE)


@read
async def conversations_after(tx: Transaction, tenant_id: str, after: str, limit: int) -> List[Conversation]:
    """Return conversations by id."""
    found = await tx.all(NEXT_CONVERSATIONS, tenant_id=tenant_id, after=after, limit=limit)
    return [to_conversation(row) for row in found]


def _instant(value: Any, where: str) -> Optional[datetime]:
    """Return a time given as `datetime` or as ISO 8601 text with a zone."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value[:-1] + "+00:00" if value.endswith(("Z", "z")) else value)
        except ValueError as exc:
            raise InvalidValueError(f"{where} is no ISO 8601 time") from exc
    return require_utc(value, where)


def _message_fields(message: Union[NewMessage, Mapping[str, Any]], index: int) -> Dict[str, Any]:
    where = f"messages[{index}]"
    if isinstance(message, Mapping) and isinstance(message.get("created_at"), str):
        message = {**message, "created_at": _instant(message["created_at"], f"{where}.created_at")}
    given = (
        message.id if isinstance(message, NewMessage) else isinstance(message, Mapping) and message.get("id")
    )
    if not given:
        raise InvalidValueError(f"{where} has no id; an import needs one to find out what is there already")
    return encode_message(message, where)


class _Importer:
    """Imports one conversation after the other, message by message, in batches."""

    def __init__(self, executor: Executor, tenant_id: str) -> None:
        self._executor = executor
        self._tenant_id = tenant_id
        self._header: Optional[Tuple[Dict[str, Any], Dict[str, Any], bool]] = None
        self._begun = False
        self._batch: List[Dict[str, Any]] = []
        self._created = False
        self._added = self._seen = 0

    def begin(self, conversation: Mapping[str, Any]) -> None:
        """Take the header of the next conversation."""
        self._header = _header(conversation, self._tenant_id)
        self._begun = self._created = False
        self._batch = []
        self._added = self._seen = 0

    async def add(self, message: Union[NewMessage, Mapping[str, Any]]) -> None:
        """Take a message of the conversation begun."""
        if self._header is None:
            raise InvalidValueError("a message came before the header of its conversation")
        self._batch.append(_message_fields(message, self._seen))
        self._seen += 1
        if len(self._batch) >= _BATCH:
            await self._flush()

    async def _flush(self) -> None:
        values, times, _ = self._header or ({}, {}, False)
        batch, self._batch = self._batch, []
        if not self._begun:
            # without times of its own, a conversation is as old as its first message
            first = batch[0]["created_at"] if batch else None
            created = times["created"] or first
            given = {"created": created, "updated": times["updated"] or created}
            self._created = await self._executor.run(ensure_header, values, given)
            self._begun = True
        key = _key(values)
        if batch and not self._created:
            known = await self._executor.run(find_known, key, [fields["id"] for fields in batch])
            batch = [fields for fields in batch if fields["id"] not in known]
        if batch:
            self._added += await self._executor.run(add_missing, key, batch, times["updated"] is not None)
            if len(batch) == _BATCH:
                await self._executor.run(refresh_statistics)

    async def end(self) -> Optional[ImportResult]:
        """Finish the conversation begun, if any."""
        if self._header is None:
            return None
        await self._flush()
        values, _, archived = self._header
        if self._created and archived:
            await self._executor.run(
                set_status, "archive_imported", values["tenant_id"], values["conversation_id"]
            )
        self._header = None
        return ImportResult(values["conversation_id"], self._created, self._added, self._seen - self._added)


def _header(conversation: Mapping[str, Any], tenant_id: str) -> Tuple[Dict[str, Any], Dict[str, Any], bool]:
    """Return the checked values of a header, its times, and whether the conversation is archived."""
    if not isinstance(conversation, Mapping) or not _HEADER.issuperset(conversation):
        raise InvalidValueError(
            f"the header of a conversation is a mapping with keys out of {', '.join(sorted(_HEADER))}"
        )
    get = conversation.get
    status = get("status", "active")
    if status not in ("active", "archived"):
        raise InvalidValueError('the status of an imported conversation must be "active" or "archived"')
    values = {
        "tenant_id": tenant_id,
        "conversation_id": check_identifier(get("id", ""), "conversation.id"),
        "title": check_optional_text(get("title"), "conversation.title"),
        "user_id": check_optional_id(get("user_id"), "conversation.user_id"),
        "session_id": check_optional_id(get("session_id"), "conversation.session_id"),
        "metadata": encode_metadata(get("metadata"), "conversation.metadata"),
        "forked_from_id": None,
        "forked_from_sequence": None,
    }
    times = {
        "created": _instant(get("created_at"), "conversation.created_at"),
        "updated": _instant(get("updated_at"), "conversation.updated_at"),
    }
    return values, times, status == "archived"


def message_record(message: Message) -> Dict[str, Any]:
    """Return a message as an export has it: what `import_conversation` takes."""
    names = ("id", "role", "content", "name", "type", "status", "metadata", "author_id", "parent_id")
    record = {name: getattr(message, name) for name in names}
    record["client_message_id"] = message.client_message_id
    record["created_at"] = message.created_at.isoformat()
    return {name: value for name, value in record.items() if value is not None or name == "content"}


def conversation_record(conversation: Conversation) -> Dict[str, Any]:
    """Return a conversation's header as an export has it."""
    record = {
        name: getattr(conversation, name)
        for name in ("id", "title", "user_id", "session_id", "status", "metadata")
    }
    record["created_at"] = conversation.created_at.isoformat()
    record["updated_at"] = conversation.updated_at.isoformat()
    return {name: value for name, value in record.items() if value is not None}


class Transfer(Store):
    """Export and import."""

    async def import_conversation(
        self, conversation: Mapping[str, Any], messages: _Messages, *, tenant_id: Optional[str] = None
    ) -> ImportResult:
        """Add a conversation and those of its messages that are not there yet, in the given order.

        Batches of 1,000 messages are a transaction each; `messages` may be a generator or an async iterator and is never
        held as a whole. Not everything is there when it raises; running it again adds what is missing.

        Args:
            conversation: "id", and optionally "title", "user_id", "session_id", "metadata", "created_at",
                "updated_at" and "status" ("active" or "archived"). A conversation that exists keeps its own. Times are
                aware `datetime`s or ISO 8601 text.
            messages: As in `add_messages`; each needs an "id". "created_at" may be ISO 8601 text.
            tenant_id: Whose; see `TenantPolicy`.

        Raises:
            InvalidValueError: a record breaks the value contract; names its place.
            ConversationArchivedError: there are new messages for a conversation that is archived.
        """
        importer = _Importer(self._executor, self._tenant(tenant_id))
        importer.begin(conversation)
        if isinstance(messages, Iterable):
            for message in messages:
                await importer.add(message)
        else:
            async for message in messages:
                await importer.add(message)
        result = await importer.end()
        return cast(ImportResult, result)

    def import_records(
        self, records: AsyncIterator[Mapping[str, Any]], *, tenant_id: Optional[str] = None
    ) -> AsyncIterator[ImportResult]:
        """Import what `export_conversations` gave, of this store or another one; gives a result for each conversation.

        Use it with `async for`: it works as far as it is asked.

        Args:
            records: {"conversation": header}, followed by {"message": message} for each of its messages.
            tenant_id: Whose; see `TenantPolicy`.

        Raises:
            As `import_conversation`.
        """
        return self._import(records, _Importer(self._executor, self._tenant(tenant_id)))

    async def _import(
        self, records: AsyncIterator[Mapping[str, Any]], importer: _Importer
    ) -> AsyncIterator[ImportResult]:
        async for record in records:
            if (
                not isinstance(record, Mapping)
                or len(record) != 1
                or not {"conversation", "message"}.issuperset(record)
            ):
                raise InvalidValueError('a record is {"conversation": header} or {"message": message}')
            if "message" in record:
                await importer.add(record["message"])
                continue
            result = await importer.end()
            importer.begin(record["conversation"])
            if result is not None:
                yield result
        result = await importer.end()
        if result is not None:
            yield result

    def export_conversations(
        self, conversation_id: Optional[str] = None, *, tenant_id: Optional[str] = None
    ) -> AsyncIterator[Dict[str, Any]]:
        """Iterate over records, in constant memory: {"conversation": {...}}, then {"message": {...}} for each of its messages.

        Args:
            conversation_id: Only this one; None: all that are not deleted, by id.
            tenant_id: Whose; see `TenantPolicy`.
        """
        tenant = self._tenant(tenant_id)
        if conversation_id is not None:
            check_identifier(conversation_id, "conversation_id")
        return self._export(tenant, conversation_id)

    async def _export(self, tenant_id: str, conversation_id: Optional[str]) -> AsyncIterator[Dict[str, Any]]:
        after, found = "", []
        while True:
            if conversation_id is None:
                found = await self._executor.run(conversations_after, tenant_id, after, _PAGE)
            else:
                one = await self._executor.run(get, tenant_id, conversation_id)
                found = [] if one is None else [one]
            for conversation in found:
                after = conversation.id
                yield {"conversation": conversation_record(conversation)}
                async for message in stream(self._executor, tenant_id, conversation.id, 0, False):
                    yield {"message": message_record(message)}
            if len(found) < _PAGE:
                return
