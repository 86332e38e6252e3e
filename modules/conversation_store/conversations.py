"""Room: conversations themselves; their messages are in other rooms."""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache
from typing import Any, Dict, List, Mapping, Optional

from sqlalchemy import BigInteger, bindparam, null, or_, select, tuple_, update

from modules.conversation_store.encoding import (
    check_limit,
    check_optional_id,
    check_optional_integer,
    check_optional_text,
    encode_metadata,
)
from modules.conversation_store.errors import ConversationExistsError, ConversationNotFoundError
from modules.conversation_store.models import CONVERSATION_STATUSES, ConversationRow
from modules.conversation_store.people import insert_new, keep_or
from modules.conversation_store.records import Conversation, Page, page_of
from modules.conversation_store.rows import CONVERSATION_COLUMNS, to_conversation
from modules.storage.columns import UtcDateTime, utc_now
from modules.storage.operations import Store, Transaction, read, write
from modules.storage.statements import Row, Statement
from modules.store_common.clock import from_microseconds, require_utc, to_microseconds
from modules.store_common.cursors import decode_cursor, encode_cursor
from modules.store_common.errors import ConcurrencyError, InvalidValueError
from modules.store_common.ids import new_id
from modules.store_common.values import check_identifier

__all__ = [
    "ADD_CONVERSATION",
    "ARCHIVE",
    "ARCHIVE_IMPORTED",
    "CHANGE_CONVERSATION",
    "GET_CONVERSATION",
    "SOFT_DELETE",
    "STATUS_CHANGES",
    "UNARCHIVE",
    "Conversations",
    "change",
    "create",
    "get",
    "list_rows",
    "set_status",
    "soft_delete",
    "wrong_version",
]

_C = ConversationRow
_HERE = (_C.tenant_id == bindparam("tenant_id"), _C.id == bindparam("conversation_id"))


_NEW = {
    _C.tenant_id: bindparam("tenant_id"),
    _C.id: bindparam("conversation_id"),
    _C.user_id: bindparam("user_id"),
    _C.session_id: bindparam("session_id"),
    _C.title: bindparam("title"),
    _C.status: "active",
    _C.last_sequence: 0,
    _C.trimmed_sequence: 0,
    _C.version: 1,
    _C.metadata_: bindparam("metadata"),
    _C.forked_from_id: bindparam("forked_from_id"),
    _C.forked_from_sequence: bindparam("forked_from_sequence"),
    _C.lease_fence: 0,
    _C.created_at: utc_now(),
    _C.updated_at: utc_now(),
}
ADD_CONVERSATION = insert_new(_C, CONVERSATION_COLUMNS, _NEW)
GET_CONVERSATION = Statement(select(*CONVERSATION_COLUMNS).where(*_HERE, _C.status != "deleted"))
_EXPECTED = bindparam("expected_version", type_=BigInteger)
CHANGE_CONVERSATION = Statement(
    update(_C)
    .where(*_HERE, _C.status != "deleted", or_(_EXPECTED.is_(None), _C.version == _EXPECTED))
    .values(
        {
            _C.title: keep_or(_C.title, "title"),
            _C.metadata_: keep_or(_C.metadata_, "metadata"),
            _C.version: _C.version + 1,
            _C.updated_at: utc_now(),
        }
    )
    .returning(*CONVERSATION_COLUMNS)
)
ARCHIVE = Statement(
    update(_C)
    .where(*_HERE, _C.status == "active")
    .values(status="archived", archived_at=utc_now(), version=_C.version + 1, updated_at=utc_now())
    .returning(*CONVERSATION_COLUMNS)
)
UNARCHIVE = Statement(
    update(_C)
    .where(*_HERE, _C.status == "archived")
    .values(status="active", archived_at=null(), version=_C.version + 1, updated_at=utc_now())
    .returning(*CONVERSATION_COLUMNS)
)
ARCHIVE_IMPORTED = Statement(
    update(_C)
    .where(*_HERE, _C.status == "active")
    .values(status="archived", archived_at=utc_now())
    .returning(*CONVERSATION_COLUMNS)
)
SOFT_DELETE = Statement(
    update(_C)
    .where(*_HERE, _C.status != "deleted")
    .values(status="deleted", deleted_at=utc_now(), version=_C.version + 1)
    .returning(_C.id)
)


_FILTERS = ("user_id", "session_id", "updated_after", "updated_before")


@lru_cache(maxsize=64)
def _list_statement(user: bool, session: bool, after: bool, before: bool, paged: bool) -> Statement:
    statement = select(*CONVERSATION_COLUMNS).where(
        _C.tenant_id == bindparam("tenant_id"), _C.status == bindparam("status")
    )
    if user:
        statement = statement.where(_C.user_id == bindparam("user_id"))
    if session:
        statement = statement.where(_C.session_id == bindparam("session_id"))
    if after:
        statement = statement.where(_C.updated_at >= bindparam("updated_after"))
    if before:
        statement = statement.where(_C.updated_at < bindparam("updated_before"))
    if paged:
        position = tuple_(bindparam("at", type_=UtcDateTime), bindparam("id", type_=_C.id.type))
        statement = statement.where(tuple_(_C.updated_at, _C.id) < position)
    return Statement(
        statement.order_by(_C.updated_at.desc(), _C.id.desc()).limit(bindparam("limit", type_=BigInteger))
    )


@write
async def create(tx: Transaction, values: Dict[str, Any], must_be_new: bool) -> Conversation:
    """Add a conversation, or give the one that has the id."""
    row = await tx.first(ADD_CONVERSATION, **values)
    if row is None and not must_be_new:
        row = await tx.first(
            GET_CONVERSATION, tenant_id=values["tenant_id"], conversation_id=values["conversation_id"]
        )
        if row is None:
            raise ConversationNotFoundError(values["conversation_id"])
    if row is None:
        raise ConversationExistsError(values["conversation_id"])
    return to_conversation(row)


@read
async def get(tx: Transaction, tenant_id: str, conversation_id: str) -> Optional[Conversation]:
    """Return a conversation that is not deleted."""
    row = await tx.first(GET_CONVERSATION, tenant_id=tenant_id, conversation_id=conversation_id)
    return None if row is None else to_conversation(row)


@read
async def list_rows(tx: Transaction, params: Dict[str, Any]) -> List[Row]:
    """Return conversations of a tenant and status, the one updated last first.

    Args:
        tx: The transaction.
        params: `tenant_id`, `status`, `limit`; `user_id`, `session_id`, `updated_after`, `updated_before`, None for any;
            and after the first page `at` and `id` of the last conversation seen.
    """
    given = [params[name] is not None for name in _FILTERS]
    return await tx.all(_list_statement(*given, "at" in params), **params)


@write
async def change(tx: Transaction, values: Dict[str, Any]) -> Conversation:
    """Change title or metadata."""
    row = await tx.first(CHANGE_CONVERSATION, **values)
    if row is not None:
        return to_conversation(row)
    conversation_id, expected = values["conversation_id"], values["expected_version"]
    found = await tx.first(GET_CONVERSATION, tenant_id=values["tenant_id"], conversation_id=conversation_id)
    if found is None:
        raise ConversationNotFoundError(conversation_id)
    raise wrong_version(conversation_id, expected, to_conversation(found).version)


def wrong_version(conversation_id: str, expected: Optional[int], actual: int) -> ConcurrencyError:
    """Return the error of a conversation that has not the expected version."""
    return ConcurrencyError(
        f"conversation {conversation_id!r}: expected version {expected}, found {actual}; read it again",
        expected,
        actual,
    )


#: What `set_status` does. An import archives without using the conversation: `updated_at` stays as imported.
STATUS_CHANGES = {"archive": ARCHIVE, "archive_imported": ARCHIVE_IMPORTED, "unarchive": UNARCHIVE}


@write
async def set_status(tx: Transaction, change: str, tenant_id: str, conversation_id: str) -> Conversation:
    """Archive or unarchive (see `STATUS_CHANGES`); a conversation that is so already is left alone."""
    statement = STATUS_CHANGES[change]
    row = await tx.first(statement, tenant_id=tenant_id, conversation_id=conversation_id)
    if row is None:
        row = await tx.first(GET_CONVERSATION, tenant_id=tenant_id, conversation_id=conversation_id)
    if row is None:
        raise ConversationNotFoundError(conversation_id)
    return to_conversation(row)


@write(atomic=False)
async def soft_delete(tx: Transaction, tenant_id: str, conversation_id: str) -> bool:
    """Mark a conversation as deleted."""
    return await tx.first(SOFT_DELETE, tenant_id=tenant_id, conversation_id=conversation_id) is not None


class Conversations(Store):
    """Conversations, without their messages."""

    async def create_conversation(
        self,
        conversation_id: Optional[str] = None,
        *,
        title: Optional[str] = None,
        user_id: Optional[str] = None,
        session_id: Optional[str] = None,
        metadata: Optional[Mapping[str, Any]] = None,
        tenant_id: Optional[str] = None,
    ) -> Conversation:
        """Make a conversation.

        Args:
            conversation_id: Its id; None gives it a UUIDv7.
            title: At most 4,096 bytes of UTF-8.
            user_id: Label to list by; the user need not be known to `ensure_user`.
            session_id: Label to list by.
            metadata: JSON object.
            tenant_id: Whose; see `TenantPolicy`.

        Raises:
            ConversationExistsError: the id is taken, perhaps by a soft-deleted conversation.
        """
        values = self._new_conversation(conversation_id, title, user_id, session_id, metadata, tenant_id)
        return await self._executor.run(create, values, True)

    async def ensure_conversation(
        self,
        conversation_id: str,
        *,
        title: Optional[str] = None,
        user_id: Optional[str] = None,
        session_id: Optional[str] = None,
        metadata: Optional[Mapping[str, Any]] = None,
        tenant_id: Optional[str] = None,
    ) -> Conversation:
        """Return the conversation, made with the given values if there is none; one that is there keeps its own.

        Raises:
            ConversationNotFoundError: it was soft-deleted and not purged yet.
        """
        values = self._new_conversation(conversation_id, title, user_id, session_id, metadata, tenant_id)
        return await self._executor.run(create, values, False)

    def _new_conversation(
        self,
        conversation_id: Optional[str],
        title: Optional[str],
        user_id: Optional[str],
        session_id: Optional[str],
        metadata: Optional[Mapping[str, Any]],
        tenant_id: Optional[str],
    ) -> Dict[str, Any]:
        own = new_id() if conversation_id is None else check_identifier(conversation_id, "conversation_id")
        return {
            "tenant_id": self._tenant(tenant_id),
            "conversation_id": own,
            "title": check_optional_text(title, "title"),
            "user_id": check_optional_id(user_id, "user_id"),
            "session_id": check_optional_id(session_id, "session_id"),
            "metadata": encode_metadata(metadata),
            "forked_from_id": None,
            "forked_from_sequence": None,
        }

    async def get_conversation(
        self, conversation_id: str, *, tenant_id: Optional[str] = None
    ) -> Optional[Conversation]:
        """Return the conversation, None when this tenant has no such one."""
        key = self._tenant(tenant_id), check_identifier(conversation_id, "conversation_id")
        return await self._executor.run(get, *key)

    async def list_conversations(
        self,
        *,
        user_id: Optional[str] = None,
        session_id: Optional[str] = None,
        status: str = "active",
        updated_after: Optional[datetime] = None,
        updated_before: Optional[datetime] = None,
        limit: int = 50,
        cursor: Optional[str] = None,
        tenant_id: Optional[str] = None,
    ) -> Page[Conversation]:
        """Return conversations, the one updated last first.

        Args:
            user_id: Only of this user.
            session_id: Only of this session.
            status: "active", "archived" or "deleted" (soft-deleted, not purged yet).
            updated_after: Only updated at this time or later; aware.
            updated_before: Only updated before this time; aware.
            limit: 1 to 10,000.
            cursor: `next_cursor` of the page before, with the same filters.
            tenant_id: Whose; see `TenantPolicy`.
        """
        if status not in CONVERSATION_STATUSES:
            raise InvalidValueError(f"status must be one of {', '.join(CONVERSATION_STATUSES)}")
        tenant = self._tenant(tenant_id)
        params: Dict[str, Any] = {
            "user_id": check_optional_id(user_id, "user_id"),
            "session_id": check_optional_id(session_id, "session_id"),
            "updated_after": require_utc(updated_after, "updated_after"),
            "updated_before": require_utc(updated_before, "updated_before"),
        }
        filters = [status, *[str(value) if value is not None else None for value in params.values()]]
        position = decode_cursor(cursor, tenant, "conversations", 2, filters=filters)
        if position is not None:
            params.update(at=from_microseconds(position[0]), id=position[1])
        params.update(tenant_id=tenant, status=status, limit=check_limit(limit) + 1)
        found = [to_conversation(row) for row in await self._executor.run(list_rows, params)]
        items = found[:limit]
        if len(found) <= limit:
            return page_of(items, None)
        last = items[-1]
        at = to_microseconds(last.updated_at)
        return page_of(items, encode_cursor(tenant, "conversations", [at, last.id], filters=filters))

    async def rename_conversation(
        self,
        conversation_id: str,
        title: Optional[str],
        *,
        expected_version: Optional[int] = None,
        tenant_id: Optional[str] = None,
    ) -> Conversation:
        """Give the conversation another title, None for none.

        Raises:
            ConversationNotFoundError: this tenant has no such conversation.
            ConcurrencyError: its version is not `expected_version`.
        """
        values = {
            "title": check_optional_text(title, "title"),
            "keep_title": 0,
            "metadata": "{}",
            "keep_metadata": 1,
        }
        return await self._change(conversation_id, values, expected_version, tenant_id)

    async def set_conversation_metadata(
        self,
        conversation_id: str,
        metadata: Mapping[str, Any],
        *,
        expected_version: Optional[int] = None,
        tenant_id: Optional[str] = None,
    ) -> Conversation:
        """Replace the conversation's metadata; errors as `rename_conversation`."""
        values = {"title": None, "keep_title": 1, "metadata": encode_metadata(metadata), "keep_metadata": 0}
        return await self._change(conversation_id, values, expected_version, tenant_id)

    async def _change(
        self, conversation_id: str, values: Dict[str, Any], expected: Optional[int], tenant_id: Optional[str]
    ) -> Conversation:
        values["tenant_id"] = self._tenant(tenant_id)
        values["conversation_id"] = check_identifier(conversation_id, "conversation_id")
        values["expected_version"] = check_optional_integer(expected, "expected_version")
        return await self._executor.run(change, values)

    async def archive_conversation(
        self, conversation_id: str, *, tenant_id: Optional[str] = None
    ) -> Conversation:
        """Archive the conversation: it takes no messages until it is unarchived. Harmless when it is archived."""
        return await self._set_status("archive", conversation_id, tenant_id)

    async def unarchive_conversation(
        self, conversation_id: str, *, tenant_id: Optional[str] = None
    ) -> Conversation:
        """Make an archived conversation active again. Harmless when it is active."""
        return await self._set_status("unarchive", conversation_id, tenant_id)

    async def _set_status(self, change: str, conversation_id: str, tenant_id: Optional[str]) -> Conversation:
        key = self._tenant(tenant_id), check_identifier(conversation_id, "conversation_id")
        return await self._executor.run(set_status, change, *key)

    async def delete_conversation(self, conversation_id: str, *, tenant_id: Optional[str] = None) -> bool:
        """Soft-delete the conversation: it is gone for every call but `list_conversations(status="deleted")`.

        Returns:
            Whether it was there.
        """
        key = self._tenant(tenant_id), check_identifier(conversation_id, "conversation_id")
        return await self._executor.run(soft_delete, *key)
