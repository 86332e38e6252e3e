"""The conversation store against a plain model: the same calls on both, the same answers (P28), on every backend."""

from __future__ import annotations

from typing import Any, Dict, List, Optional

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.conversation_store.errors import ConversationArchivedError, MessageExistsError
from modules.store_common.errors import ConcurrencyError, IdempotencyConflictError, NotFoundError
from tests.support import backends

backend = backends.backend

_NAMES = st.sampled_from(["c1", "c2"])
_IDS = st.sampled_from(["m1", "m2", "m3"])
_KEYS = st.sampled_from([None, None, "k1", "k2"])
_TEXTS = st.sampled_from(["apple", "banana", "cherry pie"])
_EXPECT = st.sampled_from([None, None, 0, 1, 2])

_STEPS = st.one_of(
    st.tuples(st.just("create"), _NAMES),
    st.tuples(st.just("add"), _NAMES, st.none() | _IDS, _TEXTS, _KEYS, _EXPECT),
    st.tuples(st.just("add_many"), _NAMES, st.lists(_TEXTS, max_size=3), _EXPECT),
    st.tuples(st.just("edit"), _NAMES, _IDS, _TEXTS),
    st.tuples(st.just("remove"), _NAMES, _IDS),
    st.tuples(st.just("archive"), _NAMES),
    st.tuples(st.just("unarchive"), _NAMES),
    st.tuples(st.just("reset"), _NAMES),
    st.tuples(st.just("hard_delete"), _NAMES),
)


class _RefusedError(Exception):
    """What the model says instead of an answer: the type of error that the store must raise."""


class _Model:
    """The store in plain Python: a list of messages for each conversation."""

    def __init__(self) -> None:
        self.conversations: Dict[str, Dict[str, Any]] = {}

    def _open(self, name: str) -> Dict[str, Any]:
        if name not in self.conversations:
            raise _RefusedError(NotFoundError)
        return self.conversations[name]

    def create(self, name: str) -> None:
        self.conversations.setdefault(name, {"archived": False, "messages": []})

    def add(
        self, name: str, message_id: Optional[str], text: str, key: Optional[str], expect: Optional[int]
    ) -> int:
        conversation = self.conversations.get(name)
        messages: List[Dict[str, Any]] = conversation["messages"] if conversation else []
        for place, message in enumerate(messages, 1):
            if key is not None and message["key"] == key:
                if message["body"] != (message_id, text):
                    raise _RefusedError(IdempotencyConflictError)
                return place
        conversation = self._open(name)
        if conversation["archived"]:
            raise _RefusedError(ConversationArchivedError)
        if expect is not None and expect != len(messages):
            raise _RefusedError(ConcurrencyError)
        if message_id is not None and any(m["id"] == message_id for m in messages):
            raise _RefusedError(MessageExistsError)
        body = (message_id, text)
        messages.append(
            {"id": message_id, "text": text, "key": key, "body": body, "live": True, "version": 1}
        )
        return len(messages)

    def add_many(self, name: str, texts: List[str], expect: Optional[int]) -> int:
        conversation = self._open(name)
        if conversation["archived"]:
            raise _RefusedError(ConversationArchivedError)
        if texts and expect is not None and expect != len(conversation["messages"]):
            raise _RefusedError(ConcurrencyError)
        for text in texts:
            self.add(name, None, text, None, None)
        return len(texts)

    def _find(self, name: str, message_id: str) -> Dict[str, Any]:
        for message in self._open(name)["messages"]:
            if message["id"] == message_id and message["live"]:
                found: Dict[str, Any] = message
                return found
        raise _RefusedError(NotFoundError)

    def edit(self, name: str, message_id: str, text: str) -> int:
        message = self._find(name, message_id)
        message["text"] = text
        message["version"] += 1
        return int(message["version"])

    def remove(self, name: str, message_id: str) -> int:
        message = self._find(name, message_id)
        message["live"] = False
        message["version"] += 1
        return int(message["version"])

    def archive(self, name: str) -> None:
        self._open(name)["archived"] = True

    def unarchive(self, name: str) -> None:
        self._open(name)["archived"] = False

    def reset(self, name: str) -> None:
        self._open(name)["messages"] = []

    def hard_delete(self, name: str) -> bool:
        return self.conversations.pop(name, None) is not None

    def state(self, name: str) -> List[Any]:
        if name not in self.conversations:
            return []
        messages = enumerate(self.conversations[name]["messages"], 1)
        return [(place, m["text"], m["version"]) for place, m in messages if m["live"]]


class _Real:
    """The same calls on the store, for one tenant of its own."""

    def __init__(self, store: Any, tenant_id: str) -> None:
        self._store = store
        self._tenant = {"tenant_id": tenant_id}

    async def create(self, name: str) -> None:
        await self._store.ensure_conversation(name, **self._tenant)

    async def add(self, name: str, message_id: Any, text: str, key: Any, expect: Any) -> int:
        added = await self._store.add_message(
            name, "user", text, message_id=message_id, client_message_id=key, expect=expect, **self._tenant
        )
        return int(added.sequence)

    async def add_many(self, name: str, texts: List[str], expect: Any) -> int:
        given = [{"role": "user", "content": text} for text in texts]
        return len(await self._store.add_messages(name, given, expect=expect, **self._tenant))

    async def edit(self, name: str, message_id: str, text: str) -> int:
        return int((await self._store.record_edit(name, message_id, content=text, **self._tenant)).version)

    async def remove(self, name: str, message_id: str) -> int:
        return int((await self._store.soft_delete_message(name, message_id, **self._tenant)).version)

    async def archive(self, name: str) -> None:
        await self._store.archive_conversation(name, **self._tenant)

    async def unarchive(self, name: str) -> None:
        await self._store.unarchive_conversation(name, **self._tenant)

    async def reset(self, name: str) -> None:
        await self._store.reset_conversation(name, **self._tenant)

    async def hard_delete(self, name: str) -> bool:
        return bool(await self._store.hard_delete_conversation(name, **self._tenant))

    async def state(self, name: str) -> List[Any]:
        page = await self._store.fetch_messages(name, **self._tenant)
        backward = await self._store.fetch_messages(name, backward=True, **self._tenant)
        recent = await self._store.load_recent_messages(name, 1000, **self._tenant)
        assert list(page) == recent == list(backward)[::-1]
        for word in ("apple", "banana", "cherry"):
            hits = await self._store.search(word, conversation_id=name, limit=1000, **self._tenant)
            assert {h.message.sequence for h in hits} == {m.sequence for m in recent if word in m.content}
        return [(m.sequence, m.content, m.version) for m in recent]


def _says(call: Any) -> Any:
    try:
        return call()
    except _RefusedError as refused:
        return refused.args[0]


async def _answers(call: Any, expected: Any) -> None:
    if isinstance(expected, type):
        try:
            got = await call
        except expected:
            return
        raise AssertionError(f"the model refuses with {expected.__name__}, the store answered {got!r}")
    assert await call == expected


_number = iter(range(10**9))


@pytest.mark.needs("fast")
@settings(max_examples=60)
@given(steps=st.lists(_STEPS, min_size=10, max_size=40))
async def test_the_store_behaves_as_the_model(storage: Any, steps: List[Any]) -> None:
    await _compare(storage, steps)


@settings(max_examples=4)
@given(steps=st.lists(_STEPS, min_size=10, max_size=40))
async def test_the_store_behaves_as_the_model_for_a_while(storage: Any, steps: List[Any]) -> None:
    await _compare(storage, steps)


async def _compare(storage: Any, steps: List[Any]) -> None:
    model, real = _Model(), _Real(storage.conversations, f"t{next(_number)}")
    # both are there to begin with, one message each: most steps need them, and chance would make them late
    begin = [
        ("create", "c1"),
        ("create", "c2"),
        ("add", "c1", "m1", "apple", None, None),
        ("add", "c2", "m2", "banana", "k1", 0),
    ]
    for name, *arguments in [*begin, *steps]:
        expected = _says(lambda name=name, arguments=arguments: getattr(model, name)(*arguments))
        await _answers(getattr(real, name)(*arguments), expected)
    for conversation in ("c1", "c2"):
        assert await real.state(conversation) == model.state(conversation)
