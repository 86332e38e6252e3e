"""From the caller's arguments to statement parameters: every value is checked here, in the caller's task, before I/O."""

from __future__ import annotations

import hashlib
from dataclasses import fields
from typing import Any, Dict, List, Mapping, Optional, Sequence, Union

from modules.conversation_store.models import MESSAGE_STATUSES
from modules.conversation_store.records import NewMessage
from modules.conversation_store.search_ddl import MAX_SEARCH_CHARACTERS
from modules.store_common.arguments import (
    KEEP,
    MAX_LABEL_BYTES,
    MAX_PAGE,
    check_label,
    check_limit,
    check_optional_id,
    check_optional_integer,
    check_optional_text,
    encode_metadata,
)
from modules.store_common.clock import require_utc
from modules.store_common.errors import InvalidValueError
from modules.store_common.ids import new_id
from modules.store_common.values import check_identifier, check_text, encode_json

__all__ = [
    "KEEP",
    "MAX_LABEL_BYTES",
    "MAX_PAGE",
    "check_label",
    "check_limit",
    "check_optional_id",
    "check_optional_integer",
    "check_optional_text",
    "check_status",
    "encode_fields",
    "encode_message",
    "encode_messages",
    "encode_metadata",
    "search_text_of",
]

_FIELDS = frozenset(item.name for item in fields(NewMessage))


def check_status(status: str) -> str:
    """Return `status` if a message may have it."""
    if status not in MESSAGE_STATUSES:
        raise InvalidValueError(f"status must be one of {', '.join(MESSAGE_STATUSES)}")
    return status


def search_text_of(content: Any) -> Optional[str]:
    """Return the words of `content` to search.

    None for a plain text, which is searched where it stands. A list gives the "text" (or text "content") of its parts, as
    in OpenAI's messages; an object its own "text" or "content".
    """
    if isinstance(content, str):
        return None
    if isinstance(content, list):
        return "\n".join(filter(None, [_words_of(part) for part in content]))[:MAX_SEARCH_CHARACTERS]
    return _words_of(content)[:MAX_SEARCH_CHARACTERS]


def _words_of(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict):
        for key in ("text", "content"):
            value = part.get(key)
            if isinstance(value, str):
                return value
            if isinstance(value, list):
                return "\n".join(item if isinstance(item, str) else _text_key(item) for item in value)
    return ""


def _text_key(item: Any) -> str:
    text = item.get("text") if isinstance(item, dict) else None
    return text if isinstance(text, str) else ""


def encode_message(message: Union[NewMessage, Mapping[str, Any]], where: str = "message") -> Dict[str, Any]:
    """Return the parameters of the insert statements for `message`.

    Raises:
        InvalidValueError: a field breaks the value contract; nothing was touched.
    """
    if isinstance(message, NewMessage):
        given: Mapping[str, Any] = message.__dict__
    elif isinstance(message, Mapping):
        given = message
        if not _FIELDS.issuperset(given):
            unknown = sorted(str(name)[:40] for name in set(given) - _FIELDS)
            raise InvalidValueError(
                f"{where} has no field {unknown[0]!r}; it has {', '.join(sorted(_FIELDS))}"
            )
    else:
        raise InvalidValueError(f"{where} must be a NewMessage or a mapping, not {type(message).__name__}")
    if "role" not in given or "content" not in given:
        raise InvalidValueError(f"{where} needs a role and a content")
    return encode_fields(given, where)


def encode_fields(given: Mapping[str, Any], where: str = "message") -> Dict[str, Any]:
    """Return the parameters of the insert statements for a mapping that has fields of a `NewMessage` and no others."""
    get = given.get
    content = given["content"]
    message_id, created_at = get("id"), get("created_at")
    name, author_id, parent_id, client_id = (
        get("name"),
        get("author_id"),
        get("parent_id"),
        get("client_message_id"),
    )
    encoded: Dict[str, Any] = {
        "id": new_id() if message_id is None else check_identifier(message_id, f"{where}.id"),
        "role": check_label(given["role"], f"{where}.role"),
        "name": None if name is None else check_text(name, f"{where}.name", max_bytes=1024),
        "type": check_label(get("type", "message"), f"{where}.type"),
        "status": check_status(get("status", "complete")),
        "content": encode_json(content, f"{where}.content"),
        "search_text": None if type(content) is str else search_text_of(content),
        "metadata": encode_metadata(get("metadata"), f"{where}.metadata"),
        "author_id": None if author_id is None else check_identifier(author_id, f"{where}.author_id"),
        "parent_id": None if parent_id is None else check_identifier(parent_id, f"{where}.parent_id"),
        "client_message_id": client_id,
        "body_digest": None,
        "created_at": require_utc(created_at, f"{where}.created_at"),
    }
    if client_id is not None:
        check_identifier(client_id, f"{where}.client_message_id")
        encoded["body_digest"] = _digest(encoded, message_id)
    return encoded


_BODY = ("role", "name", "type", "status", "content", "metadata", "author_id", "parent_id")


def _digest(encoded: Mapping[str, Any], message_id: Optional[str]) -> str:
    """Return what tells two bodies of one idempotency key apart. An id counts only where the caller gave it."""
    parts = [message_id, *[encoded[name] for name in _BODY]]
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = b"" if part is None else part.encode()
        digest.update(b"%d:" % (-1 if part is None else len(data)) + data)
    return digest.hexdigest()


def encode_messages(messages: Sequence[Union[NewMessage, Mapping[str, Any]]]) -> List[Dict[str, Any]]:
    """Return the parameters of several messages, in order."""
    return [encode_message(message, f"messages[{index}]") for index, message in enumerate(messages)]
