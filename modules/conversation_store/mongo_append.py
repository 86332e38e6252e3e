"""The conversation store in MongoDB: appending.

Messages are written first, at the places after `last`, and then published by one conditional change of the conversation
that moves `last` over them. Readers look up to `last` only. So a sequence has no gaps, whoever dies when: what a dead
writer left beyond `last` was never there, and the writer who finds its place taken removes it.

    write (unique keys: place, id, idempotency key)  ->  publish (condition: generation, last, epoch, active, lease)

A writer that is slow, not dead, must not publish over what another put in its place. So whoever removes something raises
the conversation's epoch first: a publication of an earlier epoch is refused, and only messages of earlier epochs are
removed.
"""

from __future__ import annotations

import asyncio
from typing import (
    Any,
    Awaitable,
    Callable,
    Dict,
    Hashable,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Set,
    Tuple,
    Union,
)

from modules.conversation_store import append as op
from modules.conversation_store import transfer, turn_operations
from modules.conversation_store.append import Appended, Condition, check_known, one_conversation
from modules.conversation_store.mongo_documents import (
    CONVERSATIONS,
    FORMS,
    MESSAGES,
    State,
    find_conversation,
    instant,
    language_of,
    message_document,
    micros,
    range_of,
    state_of,
)
from modules.storage.documents import Document, Documents, key_of
from modules.store_common.backoff import full_jitter
from modules.store_common.errors import (
    AlreadyExistsError,
    IdempotencyConflictError,
    InvalidValueError,
    StorageError,
)
from modules.store_common.ids import new_id

__all__ = [
    "add_missing",
    "append",
    "append_checked",
    "append_many",
    "begin_turn",
    "find_known",
    "published",
    "refresh_statistics",
    "refuse",
]

_Fields = Dict[str, Any]
_ANY = Condition()
# How often a place may be found taken, with nothing published, before its owner counts as dead. The waits add up to some
# 100 ms; a writer that is only slower than that is shut out by the epoch and tries again.
_PATIENCE = 5
_INSERTED_AT_ONCE = 500
_FEW_TIMES = 10
# Fewer messages than MongoDB takes in one command (48 MB), whatever their size.
_BYTES_AT_ONCE = 16 * 1024 * 1024


class _Batch(NamedTuple):
    """What to append, and the answer when that is done; `updated_at` None: the time of the append."""

    messages: List[_Fields]
    answer: Any
    updated_at: Optional[int] = None


#: Looks at the conversation as it is and decides what to append.
_Choose = Callable[[State, int, Optional[Document]], Awaitable[_Batch]]


def _one_key(key: Dict[str, Any], *_: Any) -> Hashable:
    return key["tenant_id"], key["conversation_id"]


def refuse(found: Optional[Document], conversation_id: str, condition: Condition) -> None:
    """Raise unless the conversation takes what `condition` expects."""
    row = None if found is None else (found["status"], found["last"], found["lf"], found["lo"])
    if row is not None and row[0] == "active":
        lease = condition.fence is None or (condition.fence, condition.owner) == (row[2], row[3])
        if lease and condition.expect in (None, row[1]):
            return
    raise op.refusal_of(row, conversation_id, condition)


async def published(
    db: Documents,
    tenant_id: str,
    conversation_id: str,
    choose: _Choose,
    condition: Condition = _ANY,
    *,
    fresh: bool = False,
) -> Any:
    """Append what `choose` decides, atomically, and return its answer.

    Args:
        db: The collections.
        tenant_id: Whose.
        conversation_id: Where to.
        choose: Called with the state of the conversation, again whenever that turns out to have changed.
        condition: What the conversation must be like, if anything is appended.
        fresh: Do not begin with what this process remembers of the conversation.
    """
    place = key_of(tenant_id, conversation_id)
    language = await language_of(db)
    taken = 0
    while True:
        state = None if fresh or condition is not _ANY else db.remembered(place)
        found: Optional[Document] = None
        if state is None:
            found = await find_conversation(db, tenant_id, conversation_id, deleted=True)
            if found is None:
                refuse(None, conversation_id, condition)
            state = state_of(found or {})
        fresh = True
        now = await db.now()
        batch = await choose(state, now, found)
        if not batch.messages and batch.updated_at is None:
            return batch.answer
        if found is not None:
            refuse(found, conversation_id, condition)
        documents = _documents(tenant_id, conversation_id, state, now, batch, language)
        try:
            await _insert(db, documents)
        except AlreadyExistsError:
            db.remember(place, None)
            await _withdraw(db, documents)
            taken = await _after_collision(db, tenant_id, conversation_id, state, documents, taken)
            continue
        if await _publish(db, place, state, now, batch, condition):
            db.remember(place, state._replace(last=state.last + len(documents)))
            return batch.answer
        db.remember(place, None)
        await _withdraw(db, documents)


def _documents(
    tenant_id: str, conversation_id: str, state: State, now: int, batch: _Batch, language: str
) -> List[Document]:
    write = new_id()
    made = []
    for number, fields in enumerate(batch.messages, 1):
        created = now if fields["created_at"] is None else micros(fields["created_at"])
        fields = {**fields, "created_at": created}
        document = message_document(tenant_id, conversation_id, state, state.last + number, fields, language)
        made.append({**document, "wt": write, **fields.get("_turn", {})})
    if len({document["i"] for document in made}) < len(made):
        raise AlreadyExistsError("two messages of one call have the same id")
    return made


async def _insert(db: Documents, documents: Sequence[Document]) -> None:
    start = size = 0
    for index, document in enumerate(documents):
        length = len(document["j"]) + len(document["m"])
        if index > start and (index - start >= _INSERTED_AT_ONCE or size + length > _BYTES_AT_ONCE):
            await db.insert(MESSAGES, documents[start:index])
            start, size = index, 0
        size += length
    if start < len(documents):
        await db.insert(MESSAGES, documents[start:])


async def _publish(
    db: Documents, place: str, state: State, now: int, batch: _Batch, condition: Condition
) -> bool:
    count = len(batch.messages)
    where = {"_id": place, "g": state.generation, "last": state.last, "ep": state.epoch, "status": "active"}
    if condition.fence is not None:
        where.update(lf=condition.fence, lo=condition.owner)
    updated = now if batch.updated_at is None else batch.updated_at
    change = {"$set": {"last": state.last + count, "ua": updated}, "$inc": {"kept": count}}
    return await db.update(CONVERSATIONS, where, change) == 1


async def _withdraw(db: Documents, documents: Sequence[Document]) -> None:
    """Remove what this write put down. It cannot be published any more: a publication is tried once."""
    if documents:
        first, last = documents[0], documents[-1]
        where = {"_id": {"$gte": first["_id"], "$lte": last["_id"]}, "wt": first["wt"]}
        await db.delete(MESSAGES, where, many=True)


async def _after_collision(
    db: Documents,
    tenant_id: str,
    conversation_id: str,
    state: State,
    documents: Sequence[Document],
    taken: int,
) -> int:
    """Find out whose place, id or key was taken; return how often nothing was published meanwhile."""
    found = await find_conversation(db, tenant_id, conversation_id, deleted=True)
    if found is None or state_of(found) != state:
        return 0
    ids = [document["i"] for document in documents]
    where = {"t": tenant_id, "g": state.generation, "i": {"$in": ids}, "n": {"$lte": state.last}}
    if await db.find_one(MESSAGES, where, fields=("n",)) is not None:
        raise AlreadyExistsError("a message with this id exists")
    if taken < _PATIENCE:
        await asyncio.sleep(full_jitter(taken + 1, base_s=0.005, cap_s=0.08))
        return taken + 1
    await _shut_out(db, key_of(tenant_id, conversation_id), tenant_id, state)
    return 0


async def _shut_out(db: Documents, place: str, tenant_id: str, state: State) -> None:
    """Remove what a dead writer left beyond `last`, once it can no longer publish it."""
    where = {"_id": place, "g": state.generation, "last": state.last, "ep": state.epoch}
    if await db.update(CONVERSATIONS, where, {"$set": {"ep": state.epoch + 1}}):
        beyond = {
            "$gt": range_of(tenant_id, state.generation, state.last),
            "$lte": range_of(tenant_id, state.generation, 10**12),
        }
        await db.delete(MESSAGES, {"_id": beyond, "ep": {"$lte": state.epoch}}, many=True)


async def _known(
    db: Documents, tenant_id: str, state: State, messages: Sequence[_Fields]
) -> Dict[str, Tuple[int, Optional[str]]]:
    """Return place and digest of the messages whose idempotency keys are known, by key."""
    keys = [fields["client_message_id"] for fields in messages]
    wanted = [key_of(tenant_id, state.generation, key) for key in keys if key is not None]
    if not wanted:
        return {}
    where = {"ck": {"$in": wanted} if len(wanted) > 1 else wanted[0], "n": {"$lte": state.last}}
    found = await db.find(MESSAGES, where, fields=("cl", "n", "bd"))
    return {document["cl"]: (document["n"], document["bd"]) for document in found}


def _chooser(db: Documents, tenant_id: str, messages: Sequence[_Fields]) -> _Choose:
    """Return what appends those messages whose idempotency keys are not known yet."""

    async def choose(state: State, now: int, found: Optional[Document]) -> _Batch:
        known = await _known(db, tenant_id, state, messages)
        outcomes: List[Union[Appended, StorageError]] = []
        new: List[_Fields] = []
        for fields in messages:
            key = fields["client_message_id"]
            if key is not None and key in known:
                try:
                    check_known(known[key][1], fields)
                    outcomes.append(Appended(known[key][0], None))
                except IdempotencyConflictError as exc:
                    outcomes.append(exc)
                continue
            new.append(fields)
            place = state.last + len(new)
            if key is not None:
                known[key] = (place, fields["body_digest"])
            created = fields["created_at"]
            outcomes.append(Appended(place, instant(now) if created is None else created))
        return _Batch(new, outcomes)

    return choose


async def _append_one(
    db: Documents, tenant_id: str, conversation_id: str, fields: _Fields, condition: Condition
) -> Appended:
    choose = _chooser(db, tenant_id, [fields])
    outcome = (await published(db, tenant_id, conversation_id, choose, condition))[0]
    if isinstance(outcome, StorageError):
        raise outcome
    appended: Appended = outcome
    return appended


async def _append_batch(
    db: Documents, calls: Sequence[Tuple[Any, ...]]
) -> Sequence[Union[Appended, BaseException]]:
    """Append the messages of many callers to one conversation together."""
    tenant_id, conversation_id = calls[0][:2]
    choose = _chooser(db, tenant_id, [call[2] for call in calls])
    try:
        outcomes: List[Any] = await published(db, tenant_id, conversation_id, choose)
        return outcomes
    except (AlreadyExistsError, InvalidValueError):
        # one of them cannot be appended: each by itself, so that it fails alone
        outcomes = []
    for call in calls:
        try:
            outcomes.append(await _append_one(db, call[0], call[1], call[2], _ANY))
        except StorageError as exc:
            outcomes.append(exc)
    return outcomes


@FORMS.form_of(op.append, turn=one_conversation, batch=_append_batch)
async def append(db: Documents, tenant_id: str, conversation_id: str, fields: _Fields) -> Appended:
    """Append one message, whatever the conversation's last sequence is."""
    return await _append_one(db, tenant_id, conversation_id, fields, _ANY)


@FORMS.form_of(op.append_checked, turn=one_conversation)
async def append_checked(
    db: Documents, tenant_id: str, conversation_id: str, fields: _Fields, condition: Condition
) -> Appended:
    """Append one message if the conversation is as `condition` says."""
    return await _append_one(db, tenant_id, conversation_id, fields, condition)


@FORMS.form_of(op.append_many, turn=one_conversation)
async def append_many(
    db: Documents, tenant_id: str, conversation_id: str, messages: Sequence[_Fields], condition: Condition
) -> List[Appended]:
    """Append messages in order, all or none."""
    return await _append_all(db, tenant_id, conversation_id, messages, condition, turn=False)


async def _append_all(
    db: Documents,
    tenant_id: str,
    conversation_id: str,
    messages: Sequence[_Fields],
    condition: Condition,
    *,
    turn: bool,
) -> List[Appended]:
    chosen = _chooser(db, tenant_id, messages)

    async def choose(state: State, now: int, found: Optional[Document]) -> _Batch:
        refuse(found, conversation_id, _ANY)
        batch = await chosen(state, now, found)
        for outcome in batch.answer:
            if isinstance(outcome, StorageError):
                raise outcome
            if turn and outcome.created_at is None:
                raise turn_operations.begun_already()
        return batch

    places: List[Appended] = await published(db, tenant_id, conversation_id, choose, condition, fresh=True)
    return places


@FORMS.form_of(turn_operations.begin_turn, turn=one_conversation)
async def begin_turn(
    db: Documents,
    tenant_id: str,
    conversation_id: str,
    messages: List[_Fields],
    condition: Condition,
    fence: str,
    seconds: float,
) -> List[Appended]:
    """Store the user's message and an empty reply, which is marked as being written."""
    ends = await db.now() + int(seconds * 1_000_000)
    reply = {**messages[-1], "_turn": {"tf": fence, "te": ends}}
    given = [*messages[:-1], reply]
    return await _append_all(db, tenant_id, conversation_id, given, condition, turn=True)


@FORMS.form_of(transfer.find_known)
async def find_known(db: Documents, key: Dict[str, Any], ids: List[str]) -> Set[str]:
    """Return those of the message ids that the conversation has, deleted ones too."""
    found = await find_conversation(db, **key, deleted=True)
    return set() if found is None else await _known_ids(db, key["tenant_id"], state_of(found), ids)


async def _known_ids(db: Documents, tenant_id: str, state: State, ids: Sequence[str]) -> Set[str]:
    where: Dict[str, Any] = {"t": tenant_id, "g": state.generation}
    if state.last > _FEW_TIMES * len(ids):
        where["i"] = {"$in": list(ids)}
    # else it costs less to read all ids of the conversation than to look each one up
    wanted = set(ids)
    found = await db.find(MESSAGES, where, fields=("i", "n"))
    return {item["i"] for item in found if item["n"] <= state.last and item["i"] in wanted}


@FORMS.form_of(transfer.add_missing, turn=_one_key)
async def add_missing(db: Documents, key: Dict[str, Any], messages: List[_Fields], keep_updated: bool) -> int:
    """Append the messages whose ids are new, in the given order; return how many."""

    async def choose(state: State, now: int, found: Optional[Document]) -> _Batch:
        refuse(found, key["conversation_id"], _ANY)
        known = await _known_ids(db, key["tenant_id"], state, [fields["id"] for fields in messages])
        new = []
        updated = now if found is None else found["ua"]
        for fields in messages:
            if fields["id"] in known:
                continue
            known.add(fields["id"])
            new.append(fields)
            created = micros(fields["created_at"]) or now
            if not keep_updated and created > updated:
                updated = created
        return _Batch(new, len(new), updated if new else None)

    count: int = await published(db, **key, choose=choose, fresh=True)
    return count


@FORMS.form_of(transfer.refresh_statistics)
async def refresh_statistics(db: Documents) -> None:
    """MongoDB plans without statistics."""
