"""Instants: aware UTC `datetime` in the API, whole microseconds since 1970 where a backend stores numbers."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Optional

from modules.store_common.errors import InvalidValueError

__all__ = ["from_microseconds", "require_utc", "to_microseconds", "utc_now"]

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND = timedelta(microseconds=1)


def utc_now() -> datetime:
    """Return this machine's time, aware, in UTC. Leases and expiry use the database's clock instead."""
    return datetime.now(timezone.utc)


def to_microseconds(instant: datetime) -> int:
    """Return the whole microseconds from 1970-01-01 UTC to the aware `instant`, exactly."""
    return (instant - _EPOCH) // _MICROSECOND


def from_microseconds(microseconds: int) -> datetime:
    """Return the aware UTC instant that lies `microseconds` after 1970-01-01."""
    return _EPOCH + timedelta(microseconds=microseconds)


def require_utc(instant: Optional[datetime], where: str) -> Optional[datetime]:
    """Return `instant` in UTC, None for None.

    Raises:
        InvalidValueError: it is no `datetime`, or has no time zone.
    """
    if instant is None:
        return None
    if not isinstance(instant, datetime):
        raise InvalidValueError(f"{where} must be a datetime, not {type(instant).__name__}")
    if instant.tzinfo is None or instant.utcoffset() is None:
        raise InvalidValueError(
            f"{where} has no time zone; give an aware datetime, for example datetime.now(timezone.utc)"
        )
    try:
        return instant.astimezone(timezone.utc)
    except OverflowError as exc:
        raise InvalidValueError(f"{where} lies outside the years 1 to 9999 in UTC") from exc
