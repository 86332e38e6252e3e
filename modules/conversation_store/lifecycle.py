"""Room: removing, emptying and forking conversations, and the assets that belong to them."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional

from sqlalchemy import BigInteger, bindparam, case, delete, func, insert, literal_column, null, select, update

from modules.conversation_store.conversations import ADD_CONVERSATION
from modules.conversation_store.encoding import (
    check_limit,
    check_optional_id,
    check_optional_integer,
    check_optional_text,
    encode_metadata,
)
from modules.conversation_store.errors import (
    ConversationExistsError,
    ConversationNotFoundError,
    MessageNotFoundError,
)
from modules.conversation_store.messages import EXISTS_CONVERSATION
from modules.conversation_store.models import AssetRow, ConversationRow, MessageEventRow, MessageRow, TurnRow
from modules.conversation_store.people import insert_new
from modules.conversation_store.records import Asset, Conversation, Page, page_of
from modules.conversation_store.rows import ASSET_COLUMNS, CONVERSATION_COLUMNS, to_asset, to_conversation
from modules.storage.columns import utc_now
from modules.storage.operations import Store, Transaction, read, write
from modules.storage.statements import Statement
from modules.store_common.cursors import decode_cursor, encode_cursor
from modules.store_common.errors import AlreadyExistsError
from modules.store_common.ids import new_id
from modules.store_common.values import check_identifier, check_text

__all__ = [
    "ADD_ASSET",
    "COPY_MESSAGES",
    "COUNT_COPIED",
    "DELETE_ASSETS",
    "DELETE_CONVERSATION",
    "EMPTY",
    "FORK_POINT",
    "LIST_ASSETS",
    "LOCK",
    "LOCK_ANY",
    "RESET",
    "SOURCE",
    "Lifecycle",
    "add",
    "asset_exists",
    "assets",
    "fork",
    "hard_delete",
    "remove_conversation",
    "reset",
]

_C, _M, _A = ConversationRow, MessageRow, AssetRow
_HERE = (_C.tenant_id == bindparam("tenant_id"), _C.id == bindparam("conversation_id"))
_MAX_URI_BYTES = 65_536


def _lock(*conditions: Any) -> Statement:
    query = select(_C.id).where(*_HERE, *conditions)
    return Statement(query, postgresql=query.with_for_update())


def _delete_of(table: Any) -> Statement:
    where = (table.tenant_id == bindparam("tenant_id"), table.conversation_id == bindparam("conversation_id"))
    return Statement(delete(table).where(*where))


LOCK_ANY = _lock()
LOCK = _lock(_C.status != "deleted")
#: In the order of removal; messages by themselves and first, so that SQLite's search triggers still find their number.
EMPTY = [_delete_of(table) for table in (TurnRow, MessageRow, MessageEventRow)]
DELETE_ASSETS = _delete_of(AssetRow)
DELETE_CONVERSATION = Statement(delete(_C).where(*_HERE))
RESET = Statement(
    update(_C)
    .where(*_HERE)
    .values(
        last_sequence=0,
        trimmed_sequence=0,
        version=_C.version + 1,
        # whoever holds a lease holds it on the conversation as it was
        lease_owner=null(),
        lease_expires_at=null(),
        lease_fence=_C.lease_fence + 1,
        updated_at=utc_now(),
    )
    .returning(*CONVERSATION_COLUMNS)
)

_SOURCE = (_M.tenant_id == bindparam("tenant_id"), _M.conversation_id == bindparam("conversation_id"))
FORK_POINT = Statement(
    select(_M.sequence).where(*_SOURCE, _M.id == bindparam("message_id"), _M.deleted_at.is_(None))
)
SOURCE = Statement(select(*CONVERSATION_COLUMNS).where(*_HERE, _C.status != "deleted"))
_COPIED = (
    "id",
    "role",
    "name",
    "type",
    "content",
    "search_text",
    "metadata",
    "author_id",
    "parent_id",
    "created_at",
)
COPY_MESSAGES = Statement(
    insert(_M).from_select(
        ["tenant_id", "conversation_id", "sequence", "status", "version", "edited_at", *_COPIED],
        select(
            _M.tenant_id,
            bindparam("fork_id", type_=_C.id.type),
            func.row_number().over(order_by=_M.sequence),
            case((_M.status == "streaming", literal_column("'interrupted'")), else_=_M.status),
            literal_column("1", BigInteger),
            _M.edited_at,
            *[_M.__table__.c[name] for name in _COPIED],
        ).where(*_SOURCE, _M.sequence <= bindparam("sequence"), _M.deleted_at.is_(None)),
        include_defaults=False,
    )
)
COUNT_COPIED = Statement(
    update(_C)
    .where(_C.tenant_id == bindparam("tenant_id"), _C.id == bindparam("fork_id"))
    .values(last_sequence=bindparam("count", type_=BigInteger))
    .returning(*CONVERSATION_COLUMNS)
)

ADD_ASSET = insert_new(
    _A,
    ASSET_COLUMNS,
    {
        **{
            getattr(_A, name): bindparam(name)
            for name in (
                "tenant_id", "conversation_id", "id", "message_id", "uri", "name", "media_type", "size_bytes", "digest"
            )
        },
        _A.metadata_: bindparam("metadata"),
        _A.created_at: utc_now(),
    },
)  # fmt: skip
LIST_ASSETS = Statement(
    select(*ASSET_COLUMNS)
    .join(_C, (_C.tenant_id == _A.tenant_id) & (_C.id == _A.conversation_id))
    .where(
        _A.tenant_id == bindparam("tenant_id"),
        _A.conversation_id == bindparam("conversation_id"),
        _C.status != "deleted",
        _A.id > bindparam("after"),
    )
    .order_by(_A.id)
    .limit(bindparam("limit", type_=BigInteger))
)


async def remove_conversation(tx: Transaction, key: Dict[str, Any]) -> bool:
    """Delete every row of a conversation, whatever its status."""
    if await tx.first(LOCK_ANY, **key) is None:
        return False
    for statement in (*EMPTY, DELETE_ASSETS):
        await tx.run(statement, **key)
    return await tx.run(DELETE_CONVERSATION, **key) == 1


@write
async def hard_delete(tx: Transaction, key: Dict[str, Any]) -> bool:
    """Delete a conversation for good."""
    return await remove_conversation(tx, key)


@write
async def reset(tx: Transaction, key: Dict[str, Any]) -> Conversation:
    """Delete a conversation's messages."""
    if await tx.first(LOCK, **key) is None:
        raise ConversationNotFoundError(key["conversation_id"])
    for statement in EMPTY:
        await tx.run(statement, **key)
    return to_conversation(await tx.one(RESET, **key))


@write
async def fork(
    tx: Transaction, key: Dict[str, Any], message_id: Optional[str], new: Dict[str, Any]
) -> Conversation:
    """Copy a conversation up to a message."""
    found = await tx.first(LOCK, **key) and await tx.first(SOURCE, **key)
    if not found:
        raise ConversationNotFoundError(key["conversation_id"])
    source = to_conversation(found)
    sequence = source.last_sequence
    if message_id is not None:
        point = await tx.first(FORK_POINT, **key, message_id=message_id)
        if point is None:
            raise MessageNotFoundError(key["conversation_id"], message_id)
        sequence = point[0]
    labels = {
        "user_id": source.user_id,
        "session_id": source.session_id,
        "metadata": encode_metadata(source.metadata),
    }
    title = source.title if new["title"] is None else new["title"]
    origin = {"forked_from_id": source.id, "forked_from_sequence": sequence}
    values = {"tenant_id": key["tenant_id"], "conversation_id": new["id"], "title": title, **labels, **origin}
    if await tx.first(ADD_CONVERSATION, **values) is None:
        raise ConversationExistsError(new["id"])
    count = await tx.run(COPY_MESSAGES, **key, fork_id=new["id"], sequence=sequence)
    return to_conversation(
        await tx.one(COUNT_COPIED, tenant_id=key["tenant_id"], fork_id=new["id"], count=count)
    )


@write
async def add(tx: Transaction, values: Dict[str, Any]) -> Asset:
    """Add an asset."""
    key = {name: values[name] for name in ("tenant_id", "conversation_id")}
    if await tx.first(EXISTS_CONVERSATION, **key) is None:
        raise ConversationNotFoundError(key["conversation_id"])
    row = await tx.first(ADD_ASSET, **values)
    if row is None:
        raise asset_exists(key["conversation_id"])
    return to_asset(row)


def asset_exists(conversation_id: str) -> AlreadyExistsError:
    """Return the error of an asset's id that is taken."""
    return AlreadyExistsError(f"conversation {conversation_id!r} already has an asset with that id")


@read
async def assets(tx: Transaction, key: Dict[str, Any], after: str, limit: int) -> List[Asset]:
    """Return assets by id."""
    return [to_asset(row) for row in await tx.all(LIST_ASSETS, **key, after=after, limit=limit)]


class Lifecycle(Store):
    """Whole conversations, and their assets."""

    async def hard_delete_conversation(
        self, conversation_id: str, *, tenant_id: Optional[str] = None
    ) -> bool:
        """Delete the conversation and everything in it for good, in one transaction; soft-deleted ones, too.

        Returns:
            Whether it was there.
        """
        return await self._executor.run(hard_delete, self._conversation_key(tenant_id, conversation_id))

    async def reset_conversation(
        self, conversation_id: str, *, tenant_id: Optional[str] = None
    ) -> Conversation:
        """Delete the conversation's messages and their events for good; its title, labels and assets stay.

        Messages are numbered from 1 again, its idempotency keys are forgotten and its lease is void.
        """
        return await self._executor.run(reset, self._conversation_key(tenant_id, conversation_id))

    async def fork_conversation(
        self,
        conversation_id: str,
        message_id: Optional[str] = None,
        *,
        new_conversation_id: Optional[str] = None,
        title: Optional[str] = None,
        tenant_id: Optional[str] = None,
    ) -> Conversation:
        """Make a new conversation that starts as a copy of this one.

        Args:
            conversation_id: The source; it is not changed.
            message_id: The last message to copy; None: the newest.
            new_conversation_id: Id of the copy; None gives it a UUIDv7.
            title: Title of the copy; None: that of the source.
            tenant_id: Whose; see `TenantPolicy`.

        Returns:
            The copy. Its messages keep their ids, parents and times and are numbered 1, 2, 3 ... ; deleted messages,
            former versions, idempotency keys and assets stay behind. One that was streaming is "interrupted".

        Raises:
            ConversationNotFoundError, MessageNotFoundError: there is no such source.
            ConversationExistsError: `new_conversation_id` is taken.
        """
        key = self._conversation_key(tenant_id, conversation_id)
        own = (
            new_id()
            if new_conversation_id is None
            else check_identifier(new_conversation_id, "new_conversation_id")
        )
        new = {"id": own, "title": check_optional_text(title, "title")}
        return await self._executor.run(fork, key, check_optional_id(message_id, "message_id"), new)

    async def add_asset(
        self,
        conversation_id: str,
        uri: str,
        *,
        asset_id: Optional[str] = None,
        message_id: Optional[str] = None,
        name: Optional[str] = None,
        media_type: Optional[str] = None,
        size_bytes: Optional[int] = None,
        digest: Optional[str] = None,
        metadata: Optional[Mapping[str, Any]] = None,
        tenant_id: Optional[str] = None,
    ) -> Asset:
        """Note a file or link that belongs to the conversation; the bytes are wherever `uri` says.

        Args:
            conversation_id: Whose.
            uri: Where the bytes are, at most 64 KiB of text.
            asset_id: Its id, unique in the conversation; None gives it a UUIDv7.
            message_id: The message it came with; not checked.
            name: File name.
            media_type: For example "image/png".
            size_bytes: Its size.
            digest: For example "sha256:...".
            metadata: JSON object.
            tenant_id: Whose; see `TenantPolicy`.

        Raises:
            ConversationNotFoundError: this tenant has no such conversation.
            AlreadyExistsError: `asset_id` is taken.
        """
        values = {
            **self._conversation_key(tenant_id, conversation_id),
            "id": new_id() if asset_id is None else check_identifier(asset_id, "asset_id"),
            "message_id": check_optional_id(message_id, "message_id"),
            "uri": check_text(uri, "uri", max_bytes=_MAX_URI_BYTES),
            "name": check_optional_text(name, "name"),
            "media_type": check_optional_id(media_type, "media_type"),
            "size_bytes": check_optional_integer(size_bytes, "size_bytes"),
            "digest": check_optional_id(digest, "digest"),
            "metadata": encode_metadata(metadata),
        }
        return await self._executor.run(add, values)

    async def list_assets(
        self,
        conversation_id: str,
        *,
        limit: int = 100,
        cursor: Optional[str] = None,
        tenant_id: Optional[str] = None,
    ) -> Page[Asset]:
        """Return the conversation's assets by id (in order of time, where we made the ids)."""
        key = self._conversation_key(tenant_id, conversation_id)
        position = decode_cursor(cursor, key["tenant_id"], "assets", 1, filters=conversation_id)
        after = "" if position is None else position[0]
        found = await self._executor.run(assets, key, after, check_limit(limit) + 1)
        if len(found) <= limit:
            return page_of(found, None)
        last = found[limit - 1].id
        return page_of(
            found[:limit], encode_cursor(key["tenant_id"], "assets", [last], filters=conversation_id)
        )

    def _conversation_key(self, tenant_id: Optional[str], conversation_id: str) -> Dict[str, Any]:
        return {
            "tenant_id": self._tenant(tenant_id),
            "conversation_id": check_identifier(conversation_id, "conversation_id"),
        }
