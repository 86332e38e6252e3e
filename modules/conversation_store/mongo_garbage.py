"""The conversation store in MongoDB: generations of messages that nobody sees any more, and how they go.

A reset or removal is one change: of the conversation's generation, or the removal of its document. The messages of the
former generation are invisible from then on, and are removed afterwards. So that this is not forgotten when the process
dies, the generation is noted as garbage first; whoever looks later removes what is noted and not in use.
"""

from __future__ import annotations

from typing import Optional

from modules.conversation_store.mongo_documents import ASSETS, CONVERSATIONS, EVENTS, GARBAGE, MESSAGES
from modules.storage.documents import Document, Documents, key_of
from modules.store_common.errors import AlreadyExistsError

__all__ = [
    "collect",
    "collect_old_garbage",
    "note_garbage",
]

# Older than any call can be that noted it and is still at work.
_ABANDONED_US = 600_000_000
_AT_ONCE = 20


async def note_garbage(
    db: Documents,
    tenant_id: str,
    conversation_id: str,
    generation: str,
    incarnation: Optional[str] = None,
) -> Document:
    """Note a generation that is about to go out of use, or that may never come into use.

    Args:
        db: The collections.
        tenant_id: Whose.
        conversation_id: Of which conversation.
        generation: Of the messages.
        incarnation: Of the assets, when those go as well.
    """
    noted = {
        "_id": key_of(tenant_id, generation),
        "t": tenant_id,
        "c": conversation_id,
        "g": generation,
        "u": incarnation,
        "at": await db.now(),
    }
    try:
        await db.insert(GARBAGE, [noted])
    except AlreadyExistsError:
        if incarnation is not None:
            # noted by a reset before; now the assets go, too
            await db.update(GARBAGE, {"_id": noted["_id"]}, {"$set": {"u": incarnation}})
    return noted


async def collect(db: Documents, noted: Document) -> None:
    """Remove a noted generation, unless it is in use after all."""
    tenant_id = noted["t"]
    found = await db.find_one(CONVERSATIONS, {"_id": key_of(tenant_id, noted["c"])}, fields=("g", "u"))
    if found is None or found["g"] != noted["g"]:
        # the space after the last part sorts behind every key that begins with the parts
        whole = {"$gt": key_of(tenant_id, noted["g"], ""), "$lt": key_of(tenant_id, noted["g"]) + "\x20"}
        await db.delete(MESSAGES, {"_id": whole}, many=True)
        await db.delete(EVENTS, {"_id": whole}, many=True)
    if noted["u"] is not None and (found is None or found["u"] != noted["u"]):
        whole = {"$gt": key_of(tenant_id, noted["u"], ""), "$lt": key_of(tenant_id, noted["u"]) + "\x20"}
        await db.delete(ASSETS, {"_id": whole}, many=True)
    await db.delete(GARBAGE, {"_id": noted["_id"]})


async def collect_old_garbage(db: Documents) -> None:
    """Remove what processes noted that died since."""
    before = await db.now() - _ABANDONED_US
    for noted in await db.find(GARBAGE, {"at": {"$lte": before}}, sort=[("at", 1)], limit=_AT_ONCE):
        await collect(db, noted)
