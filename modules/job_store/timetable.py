"""Schedules: jobs that are made by themselves, by cron, at an interval or once. A scheduler fires them (`JobQueue`)."""

from __future__ import annotations

from typing import Any, Dict, List, Optional

from sqlalchemy import String, bindparam, text

from modules.job_store.base import JobRoom
from modules.job_store.encoding import decode_schedule, encode_recurrence, encode_template
from modules.job_store.errors import ScheduleNameTakenError, ScheduleNotFoundError
from modules.job_store.limits import check_expected
from modules.job_store.records import NewJob, Page, Schedule, page_of
from modules.job_store.schedules import Recurrence, anchored, first_time
from modules.job_store.sql import NOW, binds, columns
from modules.job_store.upkeep_statements import NOW_IS, SCHEDULE_COLUMNS, SCHEDULE_NAMES
from modules.storage.columns import JsonValue
from modules.storage.operations import Transaction, read, write
from modules.storage.statements import Statement
from modules.store_common.arguments import KEEP, check_limit
from modules.store_common.cursors import decode_cursor, encode_cursor
from modules.store_common.errors import AlreadyExistsError, InvalidValueError
from modules.store_common.ids import new_id
from modules.store_common.values import JsonText, check_identifier

__all__ = [
    "ADD",
    "BY_NAME",
    "CHANGE",
    "DELETE",
    "GET",
    "LIST",
    "LOCK",
    "Schedules",
    "add_schedule",
    "change_schedule",
    "delete_schedule",
    "get_schedule",
    "get_schedule_by_name",
    "list_schedules",
]

_NAMES = ", ".join(SCHEDULE_NAMES)
_KEY = binds("tenant_id", "id")
_ADD = (
    "INSERT INTO atlas_job_schedules"
    " (tenant_id, id, name, enabled, recurrence, job, next_at, last_at, version, created_at, updated_at)"
    " VALUES (:tenant_id, :id, :name, :enabled, :recurrence, :job, :next_at, NULL, 1, {now}, {now})"
)
_BODY = (bindparam("recurrence", type_=JsonValue()), bindparam("job", type_=JsonValue()))
_ADD_BINDS = (*_KEY, *binds("name", "enabled", "next_at"), *_BODY)
ADD = Statement(
    sqlite=text(_ADD.format(now=NOW["sqlite"])).bindparams(*_ADD_BINDS),
    postgresql=text(_ADD.format(now=NOW["postgresql"])).bindparams(*_ADD_BINDS),
)
_GET = f"SELECT {_NAMES} FROM atlas_job_schedules WHERE tenant_id = :tenant_id AND id = :id"
GET = Statement(text(_GET).bindparams(*_KEY).columns(**SCHEDULE_COLUMNS))
LOCK = Statement(
    sqlite=text(_GET).bindparams(*_KEY).columns(**SCHEDULE_COLUMNS),
    postgresql=text(_GET + " FOR UPDATE").bindparams(*_KEY).columns(**SCHEDULE_COLUMNS),
)
BY_NAME = Statement(
    text(f"SELECT {_NAMES} FROM atlas_job_schedules WHERE tenant_id = :tenant_id AND name = :name")
    .bindparams(*binds("tenant_id", "name"))
    .columns(**SCHEDULE_COLUMNS)
)
LIST = Statement(
    text(
        f"SELECT {_NAMES} FROM atlas_job_schedules WHERE tenant_id = :tenant_id AND name > :after ORDER BY name LIMIT :limit"
    )
    .bindparams(*binds("tenant_id", "limit"), bindparam("after", type_=String()))
    .columns(**SCHEDULE_COLUMNS)
)
_CHANGE = (
    "UPDATE atlas_job_schedules SET name = :name, enabled = :enabled, recurrence = :recurrence, job = :job,"
    " next_at = :next_at, version = version + 1, updated_at = {now} WHERE tenant_id = :tenant_id AND id = :id"
)
CHANGE = Statement(
    sqlite=text(_CHANGE.format(now=NOW["sqlite"])).bindparams(*_ADD_BINDS),
    postgresql=text(_CHANGE.format(now=NOW["postgresql"])).bindparams(*_ADD_BINDS),
)
DELETE = Statement(
    text("DELETE FROM atlas_job_schedules WHERE tenant_id = :tenant_id AND id = :id RETURNING id")
    .bindparams(*_KEY)
    .columns(**columns("id"))
)


@write
async def add_schedule(
    tx: Transaction, tenant_id: str, name: str, recurrence: Recurrence, job: JsonText, enabled: bool
) -> Schedule:
    """Add a schedule; its first time is counted by the database's clock."""
    now = (await tx.one(NOW_IS))[0]
    fixed = anchored(recurrence, now)
    schedule_id = new_id()
    await tx.run(
        ADD, tenant_id=tenant_id, id=schedule_id, name=name, enabled=int(enabled),
        recurrence=encode_recurrence(fixed), job=job, next_at=first_time(fixed, now),
    )  # fmt: skip
    return decode_schedule(await tx.one(GET, tenant_id=tenant_id, id=schedule_id))


@read
async def get_schedule(tx: Transaction, tenant_id: str, schedule_id: str) -> Optional[Schedule]:
    """Return a schedule."""
    row = await tx.first(GET, tenant_id=tenant_id, id=schedule_id)
    return None if row is None else decode_schedule(row)


@read
async def get_schedule_by_name(tx: Transaction, tenant_id: str, name: str) -> Optional[Schedule]:
    """Return the schedule of a name."""
    row = await tx.first(BY_NAME, tenant_id=tenant_id, name=name)
    return None if row is None else decode_schedule(row)


@read
async def list_schedules(tx: Transaction, tenant_id: str, after: str, limit: int) -> List[Schedule]:
    """Return schedules by name."""
    return [decode_schedule(row) for row in await tx.all(LIST, tenant_id=tenant_id, after=after, limit=limit)]


@write
async def change_schedule(
    tx: Transaction, tenant_id: str, schedule_id: str, changes: Dict[str, Any], expected: Optional[int]
) -> Schedule:
    """Change a schedule; a new recurrence, or switching it on, counts its next time from now."""
    row = await tx.first(LOCK, tenant_id=tenant_id, id=schedule_id)
    if row is None:
        raise ScheduleNotFoundError(schedule_id)
    found = decode_schedule(row)
    check_expected("schedule", found, expected)
    now = (await tx.one(NOW_IS))[0]
    recurrence = anchored(changes.get("recurrence", found.recurrence), now)
    enabled: bool = changes.get("enabled", found.enabled)
    next_at = found.next_at
    if "recurrence" in changes or (enabled and not found.enabled):
        next_at = first_time(recurrence, now)
    await tx.run(
        CHANGE, tenant_id=tenant_id, id=schedule_id, name=changes.get("name", found.name), enabled=int(enabled),
        recurrence=encode_recurrence(recurrence), job=encode_template(changes.get("job", found.job)), next_at=next_at,
    )  # fmt: skip
    return decode_schedule(await tx.one(GET, tenant_id=tenant_id, id=schedule_id))


@write(atomic=False)
async def delete_schedule(tx: Transaction, tenant_id: str, schedule_id: str) -> bool:
    """Remove a schedule; the jobs that it made stay."""
    return await tx.first(DELETE, tenant_id=tenant_id, id=schedule_id) is not None


class Schedules(JobRoom):
    """Keeps schedules."""

    async def create_schedule(
        self,
        name: str,
        recurrence: Recurrence,
        job: NewJob,
        *,
        enabled: bool = True,
        tenant_id: Optional[str] = None,
    ) -> Schedule:
        """Have a job made whenever `recurrence` says.

        Args:
            name: Unique per tenant.
            recurrence: When; an interval without `start_at` counts from now.
            job: What; without a name, a time or an idempotency key of its own. With a `unique_key` a run is left out
                while the one before is not final.
            enabled: False: it waits until it is switched on.
            tenant_id: Whose schedule.

        Raises:
            ScheduleNameTakenError: there is one of that name.
        """
        tenant_id = self._tenant(tenant_id)
        check_identifier(name, "name")
        encoded = encode_template(job)
        try:
            return await self._executor.run(
                add_schedule, tenant_id, name, _recurrence(recurrence), encoded, _flag(enabled)
            )
        except AlreadyExistsError as exc:
            raise ScheduleNameTakenError(name) from exc

    async def get_schedule(self, schedule_id: str, *, tenant_id: Optional[str] = None) -> Optional[Schedule]:
        """Return the schedule, None when there is none."""
        tenant_id = self._tenant(tenant_id)
        return await self._executor.run(get_schedule, tenant_id, check_identifier(schedule_id, "schedule_id"))

    async def get_schedule_by_name(self, name: str, *, tenant_id: Optional[str] = None) -> Optional[Schedule]:
        """Return the schedule of that name, None when there is none."""
        tenant_id = self._tenant(tenant_id)
        return await self._executor.run(get_schedule_by_name, tenant_id, check_identifier(name, "name"))

    async def list_schedules(
        self, *, limit: int = 100, cursor: Optional[str] = None, tenant_id: Optional[str] = None
    ) -> Page[Schedule]:
        """Return a page of schedules, by name."""
        tenant_id = self._tenant(tenant_id)
        check_limit(limit)
        position = decode_cursor(cursor, tenant_id, "schedules", 1)
        after = "" if position is None else check_identifier(position[0], "the cursor")
        found = await self._executor.run(list_schedules, tenant_id, after, limit + 1)
        more = len(found) > limit
        found = found[:limit]
        return page_of(found, encode_cursor(tenant_id, "schedules", [found[-1].name]) if more else None)

    async def update_schedule(
        self,
        schedule_id: str,
        *,
        name: str = KEEP,
        recurrence: Recurrence = KEEP,
        job: NewJob = KEEP,
        enabled: bool = KEEP,
        expected_version: Optional[int] = None,
        tenant_id: Optional[str] = None,
    ) -> Schedule:
        """Change a schedule; a new recurrence, or switching it on, counts its next time from now.

        Raises:
            ScheduleNotFoundError: there is none.
            ConcurrencyError: it has another version; nothing was changed.
            ScheduleNameTakenError: another one has that name.
        """
        tenant_id = self._tenant(tenant_id)
        check_identifier(schedule_id, "schedule_id")
        changes = _given(name, recurrence, job, enabled)
        try:
            return await self._executor.run(
                change_schedule, tenant_id, schedule_id, changes, expected_version
            )
        except AlreadyExistsError as exc:
            raise ScheduleNameTakenError(str(changes.get("name"))) from exc

    async def delete_schedule(self, schedule_id: str, *, tenant_id: Optional[str] = None) -> bool:
        """Remove a schedule and return whether it was there; the jobs that it made stay."""
        tenant_id = self._tenant(tenant_id)
        return await self._executor.run(
            delete_schedule, tenant_id, check_identifier(schedule_id, "schedule_id")
        )


def _given(name: Any, recurrence: Any, job: Any, enabled: Any) -> Dict[str, Any]:
    changes: Dict[str, Any] = {}
    if name is not KEEP:
        changes["name"] = check_identifier(name, "name")
    if recurrence is not KEEP:
        changes["recurrence"] = _recurrence(recurrence)
    if job is not KEEP:
        encode_template(job)
        changes["job"] = job
    if enabled is not KEEP:
        changes["enabled"] = _flag(enabled)
    if not changes:
        raise InvalidValueError("give at least one field to change")
    return changes


def _recurrence(value: Any) -> Recurrence:
    if not isinstance(value, Recurrence):
        raise InvalidValueError(f"recurrence must be a Recurrence, not {type(value).__name__}")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise InvalidValueError("enabled must be a bool")
    return value
