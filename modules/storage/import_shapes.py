"""What one JSON record of a foreign file means: the shapes of conversations that `atlas-storage import` knows.

Pure functions from a decoded JSON object to an `ImportedConversation`; reading files is in `import_formats`. A shape is
found by its keys, never by a file's name:

    mapping          a conversation of a ChatGPT export: a tree of nodes; branches are kept through parent ids
    conversations    ShareGPT: [{"from": "human", "value": "..."}]
    messages         ours and OpenAI's chat lines: [{"role": "user", "content": "..."}], `id` and times where given

Ids that a shape lacks are made from the content, so that importing again finds what is there.
"""

from __future__ import annotations

import heapq
import math
from datetime import datetime, timedelta, timezone
from hashlib import blake2b
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple

import orjson

__all__ = [
    "ROLES",
    "ImportedConversation",
    "ImportedMessage",
    "ShapeError",
    "conversation_from_record",
    "record_digest",
]

#: The roles of messages, as OpenAI's chat format names them.
ROLES = frozenset(("system", "user", "assistant", "tool"))

_ROLE_NAMES = {
    **{name: name for name in ROLES},
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "developer": "system",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
}
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
# Epoch numbers above this are milliseconds: as seconds they would lie in the year 5138.
_MILLISECONDS_ABOVE = 1e11


class ShapeError(ValueError):
    """A record is no conversation of a known shape; the message says what is wrong and never quotes content."""


class ImportedMessage(NamedTuple):
    """A message of a foreign file. `id` is unique in its conversation; `parent_id` names a message before it."""

    id: str
    role: str
    content: Any
    name: Optional[str] = None
    created_at: Optional[datetime] = None
    parent_id: Optional[str] = None
    metadata: Optional[Dict[str, Any]] = None


class ImportedConversation(NamedTuple):
    """A conversation of a foreign file.

    `id` is None where the record had none; `shape` is "messages", "sharegpt" or "chatgpt".
    """

    id: Optional[str]
    title: Optional[str]
    created_at: Optional[datetime]
    metadata: Dict[str, Any]
    messages: List[ImportedMessage]
    shape: str


def record_digest(data: Any) -> bytes:
    """Return 16 bytes that stand for a JSON value, the same whatever the order of its keys."""
    return blake2b(orjson.dumps(data, option=orjson.OPT_SORT_KEYS), digest_size=16).digest()


def conversation_from_record(record: Any) -> ImportedConversation:
    """Return the conversation that a decoded JSON record holds.

    Raises:
        ShapeError: It holds none.
    """
    if not isinstance(record, dict):
        raise ShapeError(f"is {_kind(record)}, not a JSON object")
    if isinstance(record.get("mapping"), dict):
        return _from_chatgpt(record)
    if "messages" in record:
        return _from_list(record, "messages", "messages")
    for key in ("conversations", "conversation"):
        if isinstance(record.get(key), list):
            return _from_list(record, key, "sharegpt")
    if "role" in record or "from" in record:
        raise ShapeError('is a single message; a conversation is a line of its own: {"messages": [...]}')
    raise ShapeError(
        'has neither "messages" (chat lines) nor "conversations" (ShareGPT) nor "mapping" (ChatGPT export)'
    )


# --- lists of messages: our own lines, OpenAI's chat lines, ShareGPT


def _from_list(record: Mapping[str, Any], key: str, shape: str) -> ImportedConversation:
    items = record[key]
    if not isinstance(items, list):
        raise ShapeError(f'"{key}" is {_kind(items)}, not a list')
    messages = [_message(item, position) for position, item in enumerate(items)]
    if len({message.id for message in messages}) != len(messages):
        raise ShapeError(f"has two messages with the id {_first_repeated(messages)}")
    known = {"id", "conversation_id", "title", "created_at", "create_time", "metadata", key}
    return ImportedConversation(
        id=_identifier(record.get("id", record.get("conversation_id")), "id"),
        title=_optional_text(record.get("title"), "title"),
        created_at=_instant(record.get("created_at", record.get("create_time")), "created_at"),
        metadata=_metadata(record, known, "the conversation"),
        messages=messages,
        shape=shape,
    )


_MESSAGE_KEYS = frozenset(
    ("id", "role", "from", "content", "value", "name", "created_at", "timestamp", "parent_id", "metadata")
)


def _message(item: Any, position: int) -> ImportedMessage:
    where = f"message {position + 1}"
    if not isinstance(item, dict):
        raise ShapeError(f"{where} is {_kind(item)}, not a JSON object")
    role = _role(item.get("role", item.get("from")), where)
    if (
        "content" not in item
        and "value" not in item
        and "tool_calls" not in item
        and "function_call" not in item
    ):
        raise ShapeError(f'{where} has no "content"')
    content = item.get("content", item.get("value"))
    content = "" if content is None else content
    identifier = _identifier(item.get("id"), f"the id of {where}")
    return ImportedMessage(
        id=identifier or _position_id(position, role, content),
        role=role,
        content=content,
        name=_optional_text(item.get("name"), f"the name of {where}"),
        created_at=_instant(item.get("created_at", item.get("timestamp")), f"created_at of {where}"),
        parent_id=_identifier(item.get("parent_id"), f"the parent_id of {where}"),
        metadata=_metadata(item, _MESSAGE_KEYS, where) or None,
    )


def _position_id(position: int, role: str, content: Any) -> str:
    return f"{position:05d}-{record_digest([role, content])[:8].hex()}"


def _first_repeated(messages: List[ImportedMessage]) -> str:
    seen = set()
    for message in messages:
        if message.id in seen:
            return repr(message.id[:80])
        seen.add(message.id)
    return ""


# --- ChatGPT export


def _from_chatgpt(record: Mapping[str, Any]) -> ImportedConversation:
    nodes: Dict[str, Any] = record["mapping"]
    parents = {key: node.get("parent") if isinstance(node, dict) else None for key, node in nodes.items()}
    messages: List[ImportedMessage] = []
    nearest: Dict[
        str, Optional[str]
    ] = {}  # node -> itself where it has a message, else its nearest ancestor that has
    for key in _oldest_first(nodes, parents):
        above = parents[key]
        parent = nearest.get(above) if isinstance(above, str) else None
        message = nodes[key].get("message") if isinstance(nodes[key], dict) else None
        if isinstance(message, dict):
            messages.append(_from_node(key, message, parent))
            nearest[key] = key
        else:
            nearest[key] = parent
    if len(nearest) != len(nodes):
        raise ShapeError("has nodes in its mapping that are their own ancestors")
    current = record.get("current_node")
    extra = (
        {"current_message_id": nearest[current]} if isinstance(current, str) and nearest.get(current) else {}
    )
    for key in ("default_model_slug", "gizmo_id", "is_archived", "update_time"):
        if record.get(key) is not None:
            extra[key] = record[key]
    return ImportedConversation(
        id=_identifier(record.get("conversation_id", record.get("id")), "id"),
        title=_optional_text(record.get("title"), "title"),
        created_at=_instant(record.get("create_time"), "create_time"),
        metadata=extra,
        messages=messages,
        shape="chatgpt",
    )


def _oldest_first(nodes: Mapping[str, Any], parents: Mapping[str, Any]) -> Iterator[str]:
    """Yield nodes in the order of their times, each after its parent (a node without a time has its parent's)."""
    children: Dict[Optional[str], List[str]] = {}
    for key, parent in parents.items():
        children.setdefault(parent if isinstance(parent, str) and parent in parents else None, []).append(key)
    heap: List[Tuple[float, int, str]] = []

    def push(parent: Optional[str], at_least: float) -> None:
        for key in children.get(parent, ()):
            message = nodes[key].get("message") if isinstance(nodes[key], dict) else None
            time = message.get("create_time") if isinstance(message, dict) else None
            if isinstance(time, (int, float)) and math.isfinite(time):
                heapq.heappush(heap, (max(float(time), at_least), len(order), key))
            else:
                heapq.heappush(heap, (at_least, len(order), key))
            order.append(key)

    order: List[str] = []
    push(None, -math.inf)
    while heap:
        time, _, key = heapq.heappop(heap)
        yield key
        push(key, time)


def _from_node(key: str, message: Mapping[str, Any], parent: Optional[str]) -> ImportedMessage:
    where = f"node {key[:80]!r}"
    author = message.get("author")
    author = author if isinstance(author, dict) else {}
    metadata = message.get("metadata")
    kept = {
        name: value
        for name, value in (metadata if isinstance(metadata, dict) else {}).items()
        if value is not None
    }
    for name in ("recipient", "channel", "end_turn"):
        if message.get(name) not in (None, "all"):
            kept[name] = message[name]
    return ImportedMessage(
        id=_identifier(key, f"the id of {where}") or key,
        role=_role(author.get("role"), where),
        content=_chatgpt_content(message.get("content")),
        name=_optional_text(author.get("name"), f"the author of {where}"),
        created_at=_instant(message.get("create_time"), f"create_time of {where}"),
        parent_id=parent,
        metadata=kept or None,
    )


def _chatgpt_content(content: Any) -> Any:
    """Text where all parts are text; otherwise the content object as it stands, with its text under "text"."""
    if not isinstance(content, dict):
        return "" if content is None else content
    parts = content.get("parts")
    if not isinstance(parts, list):
        return content
    texts = [part for part in parts if isinstance(part, str)]
    if len(texts) == len(parts) and content.get("content_type", "text") == "text":
        return "\n".join(texts)
    return {**content, "text": "\n".join(texts)}


# --- single values


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _role(value: Any, where: str) -> str:
    role = _ROLE_NAMES.get(value.strip().lower()) if isinstance(value, str) else None
    if role is None:
        raise ShapeError(f"{where} has no known role; known are {', '.join(sorted(_ROLE_NAMES))}")
    return role


def _identifier(value: Any, where: str) -> Optional[str]:
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ShapeError(f"{where} is {_kind(value)}, not text or a whole number")
    return str(value)


def _optional_text(value: Any, where: str) -> Optional[str]:
    if value is None or isinstance(value, str):
        return value or None
    raise ShapeError(f"{where} is {_kind(value)}, not text")


def _metadata(record: Mapping[str, Any], known: Any, where: str) -> Dict[str, Any]:
    """Return the metadata of `record`, with every key that has no other place."""
    given = record.get("metadata")
    if given is not None and not isinstance(given, dict):
        raise ShapeError(f"the metadata of {where} is {_kind(given)}, not an object")
    others = {key: value for key, value in record.items() if key not in known and value is not None}
    return {**others, **given} if given else others


def _instant(value: Any, where: str) -> Optional[datetime]:
    """Return an aware UTC time from ISO 8601 text or epoch seconds (milliseconds where it is that large)."""
    if value is None:
        return None
    try:
        if isinstance(value, str):
            text = value[:-1] + "+00:00" if value.endswith(("Z", "z")) else value
            found = datetime.fromisoformat(text)
            # Files without an offset are UTC by far most often; the manual says so.
            return (
                found.replace(tzinfo=timezone.utc) if found.tzinfo is None else found.astimezone(timezone.utc)
            )
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            seconds = value / 1000 if abs(value) > _MILLISECONDS_ABOVE else value
            return _EPOCH + timedelta(seconds=seconds)
    except (ValueError, OverflowError):
        pass
    raise ShapeError(f"{where} is no time; write ISO 8601 (2026-01-31T12:00:00Z) or epoch seconds")
