"""The data that every contender works on, and the same statements for those who run them by hand."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any, Callable, Dict, Sequence, Tuple

from modules.storage.statements import Statement

__all__ = [
    "CONTENT",
    "CONVERSATIONS",
    "KEYS",
    "MESSAGES_EACH",
    "NAMESPACE",
    "TENANT",
    "VALUE",
    "by_hand",
    "conversation_id",
    "key",
]

TENANT = "default"
NAMESPACE = "bench"
KEYS = 10_000
CONVERSATIONS = 64
MESSAGES_EACH = 50

# An agent's preference or tool state, and a chat line of ordinary length (the mean of the LoCoMo set is 120 characters).
VALUE: Dict[str, Any] = {
    "theme": "dark",
    "visits": 17,
    "last_query": "tables by the window for two on Friday",
    "tags": ["food", "travel"],
}
CONTENT = "Since we last spoke I have been painting a lot more, mostly landscapes, and I even sold one at the market on Sunday! "


def key(task: int, number: int) -> str:
    """Return a key that no other task uses in this moment; the order looks random to the database."""
    return f"user-{(number * 7919 + task * 157) % (KEYS // 64) * 64 + task:07d}"


def conversation_id(number: int) -> str:
    return f"conversation-{number:07d}"


def by_hand(
    statement: Statement, dialect: str, names: Sequence[str], instants: Sequence[str] = ()
) -> Tuple[str, Callable[..., Any]]:
    """Return the SQL of `statement`, and the function that makes its positional parameters as one writes it by hand.

    The hand-written contenders run the very statements of the stores, without anything of the stores around them. The
    function is `lambda name, ...: (name, ...)` in the order of the SQL, constants filled in.

    Args:
        statement: One of the stores' statements.
        dialect: "sqlite" or "postgresql".
        names: Its parameters, in the order in which the function shall take them.
        instants: Those of them that are points in time.
    """
    compiled = statement.compiled(dialect)
    start = datetime(2001, 1, 1, tzinfo=timezone.utc)
    marks: Dict[str, Any] = {name: f"<{name}>" for name in names}
    marks.update({name: start + timedelta(days=day) for day, name in enumerate(instants)})
    places = compiled.bind(marks)
    meaning: Dict[Any, str] = {mark: name for name, mark in marks.items()}
    for name in instants:
        # a point in time has another form on SQLite: it is the place that changes with it
        later = compiled.bind({**marks, name: marks[name] + timedelta(hours=1)})
        meaning.update({old: name for old, new in zip(places, later) if old != new})
    body = "".join(f"{meaning.get(place) or repr(place)}, " for place in places)
    pack: Callable[..., Any] = eval(f"lambda {', '.join(names)}: ({body})")
    return compiled.sql, pack
