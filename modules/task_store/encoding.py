"""From the caller's arguments to statement parameters: every value is checked here, in the caller's task, before I/O."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

from modules.store_common.arguments import MAX_LABEL_BYTES, check_optional_id, encode_metadata
from modules.store_common.clock import require_utc
from modules.store_common.errors import InvalidValueError
from modules.store_common.ids import new_id
from modules.store_common.values import check_identifier, check_text, encode_json
from modules.task_store.errors import TaskCycleError
from modules.task_store.models import ASSIGNMENT_STATUSES, STARTS, TASK_STATUSES
from modules.task_store.records import NewTask

__all__ = [
    "MAX_DEPENDENCIES",
    "MAX_PRIORITY",
    "MAX_TAGS",
    "MAX_TITLE_BYTES",
    "EncodedTask",
    "check_assignment_status",
    "check_priority",
    "check_status",
    "check_tags",
    "check_title",
    "encode_changes",
    "encode_task",
    "encode_tasks",
]

MAX_PRIORITY = 1_000_000_000
MAX_TITLE_BYTES = 4096
MAX_TAGS = 100
MAX_DEPENDENCIES = 10_000
_MAX_TOGETHER = 10_000

_FIELDS = frozenset(item.name for item in fields(NewTask))
_LABELS = ("owner_id", "session_id", "conversation_id", "parent_id")


@dataclass(frozen=True)
class EncodedTask:
    """A checked new task.

    Attributes:
        fields: Parameters of the insert, without tenant and times.
        tags: Each once, in the caller's order.
        metadata: The caller's.
        depends_on: Ids, each once.
    """

    fields: Dict[str, Any]
    tags: Tuple[str, ...]
    metadata: Dict[str, Any]
    depends_on: Tuple[str, ...]

    @property
    def id(self) -> str:
        """The task's id."""
        return str(self.fields["id"])


def check_status(status: str, where: str = "status") -> str:
    """Return `status` if a task may have it."""
    if status not in TASK_STATUSES:
        raise InvalidValueError(f"{where} must be one of {', '.join(TASK_STATUSES)}")
    return status


def check_assignment_status(status: str) -> str:
    """Return `status` if an assignment may have it."""
    if status not in ASSIGNMENT_STATUSES:
        raise InvalidValueError(
            f"the status of an assignment must be one of {', '.join(ASSIGNMENT_STATUSES)}"
        )
    return status


def check_title(title: str, where: str = "title") -> str:
    """Return `title` if it is a text of 1 to `MAX_TITLE_BYTES` bytes that is not blank."""
    check_text(title, where, max_bytes=MAX_TITLE_BYTES)
    if not title.strip():
        raise InvalidValueError(f"{where} must not be blank")
    return title


def check_priority(priority: int, where: str = "priority") -> int:
    """Return `priority` if it is an int from -`MAX_PRIORITY` to `MAX_PRIORITY`."""
    if type(priority) is not int or not -MAX_PRIORITY <= priority <= MAX_PRIORITY:
        raise InvalidValueError(f"{where} must be an int from {-MAX_PRIORITY} to {MAX_PRIORITY}")
    return priority


def check_tags(tags: Sequence[str], where: str = "tags") -> Tuple[str, ...]:
    """Return the tags, each once; at most `MAX_TAGS` identifiers of at most 64 bytes."""
    if isinstance(tags, (str, bytes)) or not isinstance(tags, Sequence):
        raise InvalidValueError(f"{where} must be a sequence of str")
    found = tuple(
        dict.fromkeys(check_identifier(tag, f"a tag of {where}", max_bytes=MAX_LABEL_BYTES) for tag in tags)
    )
    if len(found) > MAX_TAGS:
        raise InvalidValueError(f"{where} has {len(found)} tags; at most {MAX_TAGS} are kept")
    return found


def _check_ids(ids: Sequence[str], where: str) -> Tuple[str, ...]:
    if isinstance(ids, (str, bytes)) or not isinstance(ids, Sequence):
        raise InvalidValueError(f"{where} must be a sequence of ids")
    if len(ids) > MAX_DEPENDENCIES:
        raise InvalidValueError(f"{where} names {len(ids)} tasks; at most {MAX_DEPENDENCIES} are allowed")
    return tuple(dict.fromkeys(check_identifier(item, f"an id of {where}") for item in ids))


def _description(value: Optional[str], where: str) -> Optional[str]:
    return None if value is None else check_text(value, where)


def encode_task(task: Union[NewTask, Mapping[str, Any]], where: str = "task") -> EncodedTask:
    """Return the parameters of the insert for `task`.

    Raises:
        InvalidValueError: a field breaks the value contract; nothing was touched.
        TaskCycleError: it is its own dependency or parent.
    """
    if isinstance(task, NewTask):
        given: Mapping[str, Any] = task.__dict__
    elif isinstance(task, Mapping):
        given = task
    else:
        raise InvalidValueError(f"{where} must be a NewTask or a mapping, not {type(task).__name__}")
    if not _FIELDS.issuperset(given):
        unknown = sorted(str(name)[:40] for name in set(given) - _FIELDS)
        raise InvalidValueError(f"{where} has no field {unknown[0]!r}; it has {', '.join(sorted(_FIELDS))}")
    if "title" not in given:
        raise InvalidValueError(f"{where} needs a title")
    return _encoded({**NewTask("-").__dict__, **given}, where)


def _encoded(given: Mapping[str, Any], where: str) -> EncodedTask:
    task_id, key, status = given["id"], given["idempotency_key"], given["status"]
    if status not in STARTS:
        raise InvalidValueError(
            f"{where}.status must be {' or '.join(STARTS)}: a task begins there and is moved on"
        )
    tags = check_tags(given["tags"], f"{where}.tags")
    metadata = encode_metadata(given["metadata"], f"{where}.metadata")
    encoded: Dict[str, Any] = {
        "id": new_id() if task_id is None else check_identifier(task_id, f"{where}.id"),
        "title": check_title(given["title"], f"{where}.title"),
        "description": _description(given["description"], f"{where}.description"),
        "status": status,
        "rank": -check_priority(given["priority"], f"{where}.priority"),
        **{name: check_optional_id(given[name], f"{where}.{name}") for name in _LABELS},
        "tags": encode_json(list(tags), f"{where}.tags"),
        "due_at": require_utc(given["due_at"], f"{where}.due_at"),
        "metadata": metadata,
        "idempotency_key": check_optional_id(key, f"{where}.idempotency_key"),
        "body_digest": None,
    }
    depends_on = _check_ids(given["depends_on"], f"{where}.depends_on")
    if encoded["id"] in depends_on:
        raise TaskCycleError(encoded["id"], encoded["id"])
    if encoded["id"] == encoded["parent_id"]:
        raise TaskCycleError(encoded["id"], encoded["id"], "have as its parent")
    if key is not None:
        encoded["body_digest"] = _digest(encoded, task_id, depends_on)
    return EncodedTask(encoded, tags, dict(given["metadata"] or {}), depends_on)


def encode_tasks(tasks: Sequence[Union[NewTask, Mapping[str, Any]]]) -> List[EncodedTask]:
    """Return the parameters of several tasks, in order; at most 10,000."""
    if isinstance(tasks, (str, bytes)) or not isinstance(tasks, Sequence):
        raise InvalidValueError("tasks must be a sequence of NewTask or mappings")
    if len(tasks) > _MAX_TOGETHER:
        raise InvalidValueError(
            f"{len(tasks)} tasks were given; at most {_MAX_TOGETHER} are created together"
        )
    return [encode_task(task, f"tasks[{index}]") for index, task in enumerate(tasks)]


_BODY = ("title", "description", "status", "rank", *_LABELS, "tags", "due_at", "metadata")


def _digest(encoded: Mapping[str, Any], task_id: Optional[str], depends_on: Sequence[str]) -> str:
    """Return what tells two bodies of one idempotency key apart. An id counts only where the caller gave it."""
    parts = [task_id, *[encoded[name] for name in _BODY], *depends_on]
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        text = part.isoformat() if isinstance(part, datetime) else part
        data = b"" if text is None else str(text).encode()
        digest.update(b"%d:" % (-1 if text is None else len(data)) + data)
    return digest.hexdigest()


def encode_changes(changes: Mapping[str, Any]) -> Dict[str, Any]:
    """Return the new values of fields as a `Task` has them, checked; metadata and tags may be large, so both are encoded.

    Args:
        changes: Field of a task -> its new value.
    """
    found: Dict[str, Any] = {}
    for name, value in changes.items():
        if name == "title":
            found[name] = check_title(value)
        elif name == "description":
            found[name] = _description(value, name)
        elif name == "priority":
            found[name] = check_priority(value)
        elif name == "tags":
            found[name] = check_tags(value)
        elif name == "due_at":
            found[name] = require_utc(value, name)
        elif name == "metadata":
            if value is None:
                raise InvalidValueError("metadata must be a mapping; {} clears it")
            encode_metadata(value)
            found[name] = dict(value)
        else:
            found[name] = check_optional_id(value, name)
    return found
