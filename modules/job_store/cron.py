"""Cron expressions in a time zone: the next instant, right across every change of the clocks. Pure computation.

The calendar (fields, lists, steps, `L`, `#`) is cronsim's, run on wall-clock times without a zone. What a wall-clock time
is in UTC is decided here, because cronsim's own zone arithmetic assumes shifts of whole hours: in Australia/Lord_Howe,
which shifts by thirty minutes, it leaves out 02:00 of the autumn night for `0 */2 * * *` (seen with cronsim 2.8).

Two kinds of expression, as in Debian's cron:

- Fixed time (neither the minute nor the hour begins with `*`): a time that the clocks leap over runs when the leap is
  over; a time that comes twice runs once, the first time.
- Wildcard: runs by elapsed time; what the clocks leap over does not exist, and an hour that comes twice runs twice.

Source:
    Debian's cron(8), "Daylight Saving Time and other time changes".
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone, tzinfo
from functools import lru_cache
from typing import Iterator, Optional

from cronsim import CronSim, CronSimError

from modules.store_common.errors import InvalidValueError, MissingDependencyError

__all__ = ["check_cron", "load_zone", "next_cron_time"]

_FIELDS = 5
_LONGEST = 200
_ALIASES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
# No zone has changed its offset twice within this time, so a change and its undoing cannot hide between two looks.
_LOOK = timedelta(hours=6)
_SECOND = timedelta(seconds=1)
_INSTANT = timedelta(microseconds=1)


@lru_cache(maxsize=512)
def load_zone(name: str) -> tzinfo:
    """Return the time zone of an IANA name such as "Europe/Lisbon".

    Raises:
        InvalidValueError: there is no such zone.
        MissingDependencyError: this system has no time zones at all.
    """
    if name in ("UTC", "Etc/UTC", "Z"):
        return timezone.utc
    from zoneinfo import ZoneInfo

    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError, TypeError) as exc:
        if not _has_zones():
            raise MissingDependencyError("tzdata", "jobs") from exc
        raise InvalidValueError(
            "timezone names no time zone that is known here; use an IANA name such as Europe/Lisbon"
        ) from exc


def _has_zones() -> bool:
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    try:
        ZoneInfo("Etc/GMT")
    except ZoneInfoNotFoundError:
        return False
    return True


def check_cron(expression: str) -> str:
    """Return the five fields of `expression`, in capitals and with single spaces; aliases such as @daily spelt out.

    Raises:
        InvalidValueError: it is no cron expression, or one that never comes true (31 February).
    """
    if not isinstance(expression, str) or len(expression) > _LONGEST:
        raise InvalidValueError(f"cron must be a text of at most {_LONGEST} characters")
    given = expression.strip()
    if given.startswith("@") and given.lower() not in _ALIASES:
        raise InvalidValueError(f"cron has an unknown alias; known are {', '.join(_ALIASES)}")
    fields = _ALIASES.get(given.lower(), given).upper().split()
    if len(fields) != _FIELDS:
        raise InvalidValueError(
            f"cron has {len(fields)} fields; it takes 5: minute hour day-of-month month day-of-week"
        )
    text = " ".join(fields)
    try:
        next(CronSim(text, datetime(2000, 1, 1)))  # noqa: DTZ001 - wall-clock time
    except CronSimError as exc:
        raise InvalidValueError(f"cron is not understood: {str(exc).lower()}") from exc
    except StopIteration as exc:
        raise InvalidValueError("cron never comes true") from exc
    return text


def next_cron_time(expression: str, zone: tzinfo, after: datetime) -> Optional[datetime]:
    """Return the first instant after `after` (both UTC) at which `expression` is true in `zone`; None: never again.

    Args:
        expression: As `check_cron` returns it.
        zone: From `load_zone`.
        after: Aware, UTC.
    """
    minute, hour = expression.split()[:2]
    try:
        if minute.startswith("*") or hour.startswith("*"):
            return _next_elapsed(expression, zone, after)
        return _next_fixed(expression, zone, after)
    except (StopIteration, OverflowError, ValueError):
        # cronsim gives up after fifty years without a match; the calendar ends with the year 9999
        return None


def _next_fixed(expression: str, zone: tzinfo, after: datetime) -> datetime:
    """Each wall-clock time is one instant; later wall-clock times are never earlier instants, so the first is the next."""
    for wall in _wall_times(expression, _wall(zone, after)):
        instant = _instant_of(zone, wall)
        if instant > after:
            return instant
    raise StopIteration


def _next_elapsed(expression: str, zone: tzinfo, after: datetime) -> datetime:
    """Go from one change of the clocks to the next; between two of them wall-clock time is UTC plus a constant."""
    start = after
    while True:
        offset = _offset(zone, start)
        wall = next(_wall_times(expression, (start + offset).replace(tzinfo=None)))
        instant = wall.replace(tzinfo=timezone.utc) - offset
        change = _first_change(zone, start, instant)
        if change is None:
            return instant
        # Look again from the change on, that instant included. What lay before it was looked at already.
        offset = _offset(zone, change)
        wall = next(_wall_times(expression, (change + offset - _INSTANT).replace(tzinfo=None)))
        instant = wall.replace(tzinfo=timezone.utc) - offset
        if instant == change:
            return instant
        start = change


def _wall_times(expression: str, after: datetime) -> Iterator[datetime]:
    return iter(CronSim(expression, after))


def _wall(zone: tzinfo, instant: datetime) -> datetime:
    return instant.astimezone(zone).replace(tzinfo=None)


def _offset(zone: tzinfo, instant: datetime) -> timedelta:
    offset = instant.astimezone(zone).utcoffset()
    return offset if offset is not None else timedelta(0)


def _instant_of(zone: tzinfo, wall: datetime) -> datetime:
    """Return when a clock of `zone` shows `wall` for the first time; one that it never shows: when the leap is over."""
    first = wall.replace(tzinfo=zone, fold=0).astimezone(timezone.utc)
    if _wall(zone, first) == wall:
        return first
    # In a gap, fold=1 counts with the offset after it and so lands before it (PEP 495).
    before = wall.replace(tzinfo=zone, fold=1).astimezone(timezone.utc)
    return _first_change(zone, before, first) or first


def _first_change(zone: tzinfo, start: datetime, end: datetime) -> Optional[datetime]:
    """Return the first instant in (start, end] at which the offset is not that of `start`, to the second."""
    if zone is timezone.utc:
        return None
    offset = _offset(zone, start)
    low = start
    while low < end:
        high = min(low + _LOOK, end)
        if _offset(zone, high) != offset:
            return _bisect(zone, low, high, offset)
        low = high
    return None


def _bisect(zone: tzinfo, low: datetime, high: datetime, offset: timedelta) -> datetime:
    low = low.replace(microsecond=0)
    high = high if high.microsecond == 0 else high.replace(microsecond=0) + _SECOND
    while high - low > _SECOND:
        middle = low + timedelta(seconds=(high - low) // _SECOND // 2)
        if _offset(zone, middle) == offset:
            low = middle
        else:
            high = middle
    return high
