"""Arguments for every public method of the stores; see `tests.support.calls`."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any, AsyncIterator, Dict

from modules.conversation_store.records import ConversationLease
from modules.job_store.records import ClaimedJob, NewJob, Outcome, RetryPolicy, Schedule
from modules.job_store.schedules import Recurrence
from tests.support.calls import Calls, Fresh, public_calls

__all__ = [
    "CONVERSATION_ARGUMENTS",
    "JOB_ARGUMENTS",
    "KV_ARGUMENTS",
    "QUEUE_ARGUMENTS",
    "TASK_ARGUMENTS",
    "seed_tasks",
    "store_calls",
]


async def _records() -> AsyncIterator[Dict[str, Any]]:
    yield {"conversation": {"id": "record"}}
    yield {"message": {"id": "r1", "role": "user", "content": "hi"}}


CONVERSATION_ARGUMENTS: Dict[str, Any] = {
    "conversation_id": "c",
    "message_id": "m",
    "user_id": "u",
    "session_id": "s",
    "title": "a title",
    "role": "user",
    "content": {"text": "hello"},
    "metadata": {"colour": "blue"},
    "query": "hello",
    "messages": [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}],
    "asset_id": "a",
    "uri": "file:///a.png",
    "media_type": "image/png",
    "sequence": 1,
    "owner": "worker",
    "lease": ConversationLease("c", "worker", 1, datetime(2999, 1, 1, tzinfo=timezone.utc)),
    "user_message": "hello",
    "import_conversation.conversation": {"id": "imported"},
    "import_conversation.messages": [{"id": "i1", "role": "user", "content": "hi"}],
    "import_records.records": Fresh(lambda: _records()),
    "record_edit.content": "edited",
}
KV_ARGUMENTS: Dict[str, Any] = {
    "namespace": "ns",
    "key": "k",
    "keys": ["k1", "k2"],
    "value": {"a": 1},
    "items": {"k5": 5, "k6": 6},
    "expected_version": None,
    "ttl_seconds": 60.0,
    "increment.key": "counter",
    "compare_and_set.expected": None,
    "compare_and_set.key": "absent",
    "clear.namespace": "empty",
}

JOB_ARGUMENTS: Dict[str, Any] = {
    "handler": "h",
    "job": NewJob("h"),
    "jobs": [NewJob("h"), NewJob("h", unique_key="u")],
    "job_id": "j",
    "name": "n",
    "schedule_id": "s",
    "recurrence": Recurrence(every_s=60),
    "create_schedule.name": "schedule",
    "assignee": "a",
    "task_id": "t",
    "update.priority": 1,
    "reschedule.delay_s": 1.0,
    "update_schedule.enabled": False,
    "older_than_days": 1.0,
}
_THEN = datetime(2030, 1, 1, tzinfo=timezone.utc)
_CLAIM = ClaimedJob(
    "default", "j", 1, "h", None, None, "default", 0, 1, RetryPolicy(), None, _THEN, _THEN, _THEN
)  # fmt: skip
QUEUE_ARGUMENTS: Dict[str, Any] = {
    "worker": "w",
    "queues": ["default"],
    "queue": "q",
    "claim": _CLAIM,
    "claims": [_CLAIM],
    "outcomes": [Outcome(_CLAIM, "succeeded")],
    "error_type": "E",
    "lines": "a line",
    "progress": 0.5,
    "schedule": Schedule(
        "default",
        "s",
        "s",
        True,
        Recurrence(every_s=60, start_at=_THEN),
        NewJob("h"),
        _THEN,
        None,
        1,
        _THEN,
        _THEN,
    ),
    "times": [_THEN],
    "next_at": None,
}


TASK_ARGUMENTS: Dict[str, Any] = {
    "title": "a title",
    "task_id": "t",
    "tasks": [{"title": "one"}, {"title": "two", "tags": ["x"]}],
    "depends_on_id": "u",
    "assignee_id": "ann",
    "assignment_id": "a",
    "text": "a comment",
    "query": "hello",
    "name": "subscriber",
    "handler": Fresh(lambda: lambda event: None),
    "assign_task.assignment_id": "a",
    "create_task.tags": ["x"],
    "create_task.metadata": {"colour": "blue"},
    "delete_task.task_id": "gone",
    "handle_events.follow": False,
    "list_assignments.task_id": "t",
    "list_tasks.tag": "x",
    "subscribe.follow": False,
    "transition_assignment.status": "accepted",
    "transition_task.status": "ready",
    "update_task.title": "another title",
}


async def seed_tasks(manager: Any) -> None:
    """Create the tasks that the calls name."""
    await manager.tasks.create_tasks([{"title": "hello", "id": name} for name in ("t", "u")])


def store_calls(manager: Any) -> Calls:
    """Return every public call of the stores of `manager`."""
    calls = [
        (f"conversations.{n}", c) for n, c in public_calls(manager.conversations, CONVERSATION_ARGUMENTS)
    ]
    calls += [(f"jobs.{n}", c) for n, c in public_calls(manager.jobs, JOB_ARGUMENTS)]
    calls += [(f"job_queue.{n}", c) for n, c in public_calls(manager.job_queue, QUEUE_ARGUMENTS)]
    calls += [(f"kv.{n}", c) for n, c in public_calls(manager.kv, KV_ARGUMENTS)]
    return calls + [(f"tasks.{n}", c) for n, c in public_calls(manager.tasks, TASK_ARGUMENTS)]
