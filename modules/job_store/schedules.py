"""When a schedule runs: next times, end, jitter and what becomes of times that were missed. Pure computation, no clock.

Whoever fires schedules passes the database's time in, so a wrong clock of a worker changes nothing, and five schedulers
that ask the same question get the same answer. Times are nominal: what the schedule says. `jittered` moves the run
itself, by an amount that follows from the schedule and the time alone.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from enum import Enum
from typing import Any, Dict, List, Mapping, Optional, Tuple

from modules.job_store.cron import check_cron, load_zone, next_cron_time
from modules.store_common.clock import require_utc, to_microseconds
from modules.store_common.errors import InvalidValueError

__all__ = ["Due", "MissedRuns", "Recurrence", "anchored", "due_times", "first_time", "jittered", "next_time"]

_SHORTEST_INTERVAL_S = 1.0
_LONGEST_S = 100.0 * 366 * 86_400
_DEFAULT_GRACE_S = 60.0
_INSTANT = timedelta(microseconds=1)
_SMALLEST_LOOK = timedelta(minutes=1)
_LOOK_GROWTH = 8


class MissedRuns(str, Enum):
    """What becomes of times that passed while no scheduler ran."""

    SKIP = "skip"
    ONE = "one"
    ALL = "all"


@dataclass(frozen=True)
class Recurrence:
    """When something is to run: by `cron`, by `every_s` or once `at`; exactly one of them.

    Attributes:
        cron: Five fields, or an alias such as @daily; see `modules.job_store.cron` for what happens when clocks change.
        every_s: Seconds between two times, at least 1, counted from `start_at` in elapsed time.
        at: The one time.
        timezone: IANA name in which `cron` is read.
        start_at: No time before it. `every_s` counts from there; see `anchored`.
        end_at: No time after it.
        jitter_s: Each run is moved later by 0 to this many seconds.
        missed: For times that are late by more than `grace_s`: skip them, run one in their place, or run all.
        grace_s: How late a time may be noticed and still count as on time, in seconds.

    Raises:
        InvalidValueError: these do not go together.
    """

    cron: Optional[str] = None
    every_s: Optional[float] = None
    at: Optional[datetime] = None
    timezone: str = "UTC"
    start_at: Optional[datetime] = None
    end_at: Optional[datetime] = None
    jitter_s: float = 0.0
    missed: MissedRuns = MissedRuns.ONE
    grace_s: float = _DEFAULT_GRACE_S

    def __post_init__(self) -> None:
        given = [name for name in ("cron", "every_s", "at") if getattr(self, name) is not None]
        if len(given) != 1:
            raise InvalidValueError(
                f"a schedule takes exactly one of cron, every_s and at, not {len(given)} of them"
            )
        if self.cron is not None:
            object.__setattr__(self, "cron", check_cron(self.cron))
        if self.every_s is not None:
            _check_seconds(self.every_s, "every_s", _SHORTEST_INTERVAL_S)
        load_zone(self.timezone)
        for name in ("at", "start_at", "end_at"):
            object.__setattr__(self, name, require_utc(getattr(self, name), name))
        _check_seconds(self.jitter_s, "jitter_s", 0.0)
        _check_seconds(self.grace_s, "grace_s", 0.0)
        object.__setattr__(self, "missed", _missed(self.missed))
        if self.start_at is not None and self.end_at is not None and self.end_at < self.start_at:
            raise InvalidValueError("end_at lies before start_at")

    def to_dict(self) -> Dict[str, Any]:
        """Return the fields, times as `datetime`."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**values, "missed": self.missed.value}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recurrence:
        """Make one of what `to_dict` gave; unknown names are refused."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise InvalidValueError(
                f"a schedule has no {', '.join(unknown)}; it has {', '.join(sorted(known))}"
            )
        return cls(**values)


@dataclass(frozen=True)
class Due:
    """What to do for a schedule whose time has come.

    Attributes:
        times: The nominal times to run now, oldest first.
        next_at: The nominal time at which to look again; None: the schedule is over. It may lie in the past when there
            were more times than the limit.
        missed: Whether times were late, whatever became of them.
    """

    times: Tuple[datetime, ...]
    next_at: Optional[datetime]
    missed: bool = False


def anchored(recurrence: Recurrence, now: datetime) -> Recurrence:
    """Return it with the start that an interval counts from: `now`, where none was given."""
    if recurrence.every_s is None or recurrence.start_at is not None:
        return recurrence
    return replace(recurrence, start_at=now)


def next_time(recurrence: Recurrence, after: datetime) -> Optional[datetime]:
    """Return the first nominal time after `after` (aware UTC), None when there is none any more."""
    start = recurrence.start_at
    if start is not None and after < start:
        after = start - _INSTANT
    if recurrence.cron is not None:
        found = next_cron_time(recurrence.cron, load_zone(recurrence.timezone), after)
    elif recurrence.every_s is not None:
        found = _next_interval(recurrence, after)
    else:
        found = recurrence.at if recurrence.at is not None and recurrence.at > after else None
    if found is None or (recurrence.end_at is not None and found > recurrence.end_at):
        return None
    return found


def first_time(recurrence: Recurrence, now: datetime) -> Optional[datetime]:
    """Return the first nominal time of a schedule that is made at `now`; a single time in the past counts still."""
    if recurrence.at is not None:
        return next_time(recurrence, min(now, recurrence.at) - _INSTANT)
    return next_time(recurrence, now - _INSTANT)


def due_times(recurrence: Recurrence, next_at: datetime, now: datetime, *, limit: int = 100) -> Due:
    """Return which times from `next_at` to `now` run, after the missed-run policy, and when to look again.

    Args:
        recurrence: The schedule.
        next_at: Its next nominal time as it was computed last.
        now: By the database's clock. Earlier than `next_at` (the clock was set back): nothing is due, so no time
            runs twice.
        limit: At most so many times in one answer.
    """
    if now < next_at:
        return Due((), next_at)
    horizon = now - timedelta(seconds=recurrence.grace_s)
    missed = next_at < horizon
    start: Optional[datetime] = next_at
    if missed and recurrence.missed is MissedRuns.ONE:
        last = _last_time(recurrence, next_at, now)
        return Due((last,), next_time(recurrence, now), missed=True)
    if missed and recurrence.missed is MissedRuns.SKIP:
        start = next_time(recurrence, horizon - _INSTANT)
    times: List[datetime] = []
    while start is not None and start <= now and len(times) < limit:
        times.append(start)
        start = next_time(recurrence, start)
    return Due(tuple(times), start, missed)


def jittered(recurrence: Recurrence, schedule_id: str, nominal: datetime) -> datetime:
    """Return when the run of `nominal` starts: up to `jitter_s` later, the same for everybody who asks."""
    if recurrence.jitter_s == 0:
        return nominal
    digest = hashlib.sha256(f"{schedule_id}:{to_microseconds(nominal)}".encode()).digest()
    share = int.from_bytes(digest[:8], "big") / 2.0**64
    return nominal + timedelta(seconds=recurrence.jitter_s * share)


def _next_interval(recurrence: Recurrence, after: datetime) -> Optional[datetime]:
    if recurrence.start_at is None or recurrence.every_s is None:
        raise InvalidValueError("a schedule by every_s counts from start_at, which is missing")
    every = _interval(recurrence.every_s)
    passed = (after - recurrence.start_at) // every
    try:
        return recurrence.start_at + every * max(passed + 1, 0)
    except OverflowError:
        return None


def _interval(every_s: float) -> timedelta:
    return timedelta(microseconds=round(every_s * 1_000_000))


def _last_time(recurrence: Recurrence, since: datetime, until: datetime) -> datetime:
    """Return the last nominal time that is not after `until`; `since` is one. Looks back in growing steps."""
    if recurrence.end_at is not None:
        until = min(until, recurrence.end_at)
    look = _SMALLEST_LOOK if recurrence.every_s is None else _interval(recurrence.every_s)
    while look < until - since:
        found = next_time(recurrence, until - look - _INSTANT)
        if found is not None and found <= until:
            break
        look *= _LOOK_GROWTH
    else:
        found = since
    last = found
    following = next_time(recurrence, last)
    while following is not None and following <= until:
        last, following = following, next_time(recurrence, following)
    return last


def _check_seconds(value: Any, name: str, least: float) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not least <= value <= _LONGEST_S:
        raise InvalidValueError(f"{name} must be a number of seconds from {least:g} to {_LONGEST_S:g}")


def _missed(value: Any) -> MissedRuns:
    try:
        return MissedRuns(value)
    except ValueError as exc:
        allowed = ", ".join(policy.value for policy in MissedRuns)
        raise InvalidValueError(f"missed must be one of {allowed}") from exc
