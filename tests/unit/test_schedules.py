"""When schedules run: leaps of clocks, leap days, month ends, missed runs, jitter. All by table or against a plain oracle."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from functools import cache
from typing import Any, List, Optional
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.job_store.cron import check_cron, load_zone, next_cron_time
from modules.job_store.schedules import (
    MissedRuns,
    Recurrence,
    anchored,
    due_times,
    first_time,
    jittered,
    next_time,
)
from modules.store_common.errors import InvalidValueError

UTC = timezone.utc
MINUTE = timedelta(minutes=1)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def upcoming(recurrence: Recurrence, after: datetime, count: int) -> List[datetime]:
    found: List[datetime] = []
    moment: Optional[datetime] = after
    while len(found) < count:
        assert moment is not None
        moment = next_time(recurrence, moment)
        if moment is None:
            break
        found.append(moment)
    return found


# zone, cron, after (UTC), the next times in UTC
TABLE = [
    # the clocks leap from 02:00 to 03:00 at 01:00 UTC
    ("Europe/Berlin", "30 2 * * *", "2026-03-28T12:00", ["2026-03-29T01:00", "2026-03-30T00:30"]),
    ("Europe/Berlin", "0 3 * * *", "2026-03-28T12:00", ["2026-03-29T01:00", "2026-03-30T01:00"]),
    ("Europe/Berlin", "15,45 2 * * *", "2026-03-28T12:00", ["2026-03-29T01:00", "2026-03-30T00:15"]),
    ("Europe/Berlin", "*/30 * * * *", "2026-03-29T00:00", ["2026-03-29T00:30", "2026-03-29T01:00", "2026-03-29T01:30"]),
    ("Europe/Berlin", "*/30 2 * * *", "2026-03-28T12:00", ["2026-03-30T00:00"]),
    # and back from 03:00 to 02:00 at 01:00 UTC: 02:30 comes twice
    ("Europe/Berlin", "30 2 * * *", "2026-10-24T12:00", ["2026-10-25T00:30", "2026-10-26T01:30"]),
    ("Europe/Berlin", "30 2 * * *", "2026-10-25T00:45", ["2026-10-26T01:30"]),
    ("Europe/Berlin", "*/30 2 * * *", "2026-10-24T12:00", ["2026-10-25T00:00", "2026-10-25T00:30", "2026-10-25T01:00",
      "2026-10-25T01:30", "2026-10-26T01:00"]),
    ("Europe/Berlin", "0 * * * *", "2026-10-24T23:30", ["2026-10-25T00:00", "2026-10-25T01:00", "2026-10-25T02:00"]),
    # west of Greenwich
    ("America/New_York", "30 2 * * *", "2026-03-07T12:00", ["2026-03-08T07:00", "2026-03-09T06:30"]),
    ("America/New_York", "30 1 * * *", "2026-10-31T12:00", ["2026-11-01T05:30", "2026-11-02T06:30"]),
    # thirty minutes: from 02:00 to 02:30 at 15:30 UTC, back from 02:00 to 01:30 at 15:00 UTC
    ("Australia/Lord_Howe", "15 2 * * *", "2026-10-03T00:00", ["2026-10-03T15:30", "2026-10-04T15:15"]),
    ("Australia/Lord_Howe", "45 1 * * *", "2026-04-04T00:00", ["2026-04-04T14:45", "2026-04-05T15:15"]),
    ("Australia/Lord_Howe", "0 */2 * * *", "2026-04-04T12:30", ["2026-04-04T13:00", "2026-04-04T15:30", "2026-04-04T17:30"]),
    ("Australia/Lord_Howe", "*/15 * * * *", "2026-04-04T14:40", ["2026-04-04T14:45", "2026-04-04T15:00", "2026-04-04T15:15"]),
    # at midnight: the day begins at 01:00
    ("Africa/Cairo", "0 0 * * *", "2026-04-22T22:30", ["2026-04-23T22:00", "2026-04-24T21:00"]),
    ("Africa/Cairo", "*/15 * 24 4 *", "2026-04-01T00:00", ["2026-04-23T22:00", "2026-04-23T22:15"]),
    # a whole day left out: Samoa had no 30 December 2011
    ("Pacific/Apia", "0 12 * * *", "2011-12-29T12:00", ["2011-12-29T22:00", "2011-12-30T10:00", "2011-12-30T22:00"]),
    # no whole hours at all
    ("Asia/Kathmandu", "0 6 * * *", "2026-01-01T00:00", ["2026-01-01T00:15", "2026-01-02T00:15"]),
    # a change of the clocks far from the next time
    ("Europe/Berlin", "*/30 0 1 7 *", "2026-01-01T00:00", ["2026-06-30T22:00", "2026-06-30T22:30"]),
    # the calendar
    ("UTC", "0 0 29 2 *", "2025-01-01T00:00", ["2028-02-29T00:00", "2032-02-29T00:00"]),
    ("UTC", "0 0 29 2 *", "2097-01-01T00:00", ["2104-02-29T00:00"]),
    ("UTC", "0 0 31 * *", "2026-01-31T00:00", ["2026-03-31T00:00", "2026-05-31T00:00", "2026-07-31T00:00"]),
    ("UTC", "0 9 L * *", "2028-01-31T10:00", ["2028-02-29T09:00", "2028-03-31T09:00"]),
    ("UTC", "59 23 31 12 *", "2026-06-01T00:00", ["2026-12-31T23:59", "2027-12-31T23:59"]),
    ("UTC", "*/20 * * * *", "2026-12-31T23:40", ["2027-01-01T00:00", "2027-01-01T00:20"]),
    ("UTC", "0 8 * * MON-FRI", "2026-11-27T09:00", ["2026-11-30T08:00"]),
    ("UTC", "0 0 13 * FRI", "2026-11-10T00:00", ["2026-11-13T00:00", "2026-11-20T00:00"]),
    ("UTC", "0 12 * * SUN#1", "2026-11-02T00:00", ["2026-12-06T12:00"]),
    ("UTC", "@daily", "2026-11-02T00:00", ["2026-11-03T00:00"]),
]  # fmt: skip


@pytest.mark.parametrize(("zone", "cron", "after", "expected"), TABLE)
def test_the_table(zone: str, cron: str, after: str, expected: List[str]) -> None:
    recurrence = Recurrence(cron=cron, timezone=zone)

    assert upcoming(recurrence, at(after), len(expected)) == [at(text) for text in expected]


#: (zone, a day on which its clocks change)
CHANGES = [
    ("Europe/Berlin", "2026-03-29"), ("Europe/Berlin", "2026-10-25"),
    ("America/New_York", "2026-03-08"), ("America/New_York", "2026-11-01"),
    ("Australia/Lord_Howe", "2026-10-03"), ("Australia/Lord_Howe", "2026-04-04"),
    ("Africa/Cairo", "2026-04-23"), ("Africa/Cairo", "2026-10-29"),
    ("America/Santiago", "2026-04-04"), ("America/Santiago", "2026-09-05"),
    ("Pacific/Apia", "2011-12-30"), ("Africa/Casablanca", "2026-02-15"), ("UTC", "2026-06-30"),
]  # fmt: skip

_fields = st.one_of(st.just("*"), st.integers(1, 30).map(lambda n: f"*/{n}"), st.integers(0, 23).map(str))


@cache
def _clock(zone: str, day: str) -> Any:
    """Return every minute of `day` and of a little more, and what a clock shows then."""
    minutes = [at(day) + n * MINUTE for n in range(-120, 1560)]
    return minutes, [moment.astimezone(load_zone(zone)).replace(tzinfo=None) for moment in minutes]


def _plain_minute(field: str, value: int) -> bool:
    return value % int(field[2:]) == 0 if field.startswith("*/") else field in ("*", str(value))


@settings(max_examples=40)
@given(change=st.sampled_from(CHANGES), minute=_fields, hour=_fields)
def test_it_agrees_with_looking_at_every_minute(change: Any, minute: str, hour: str) -> None:
    """The oracle looks at a clock every minute for a day, as cron itself does."""
    zone = load_zone(change[0])
    minutes, walls = _clock(*change)
    start = minutes[0]
    fixed = not minute.startswith("*") and not hour.startswith("*")
    expected, shown = set(), set()
    for before, wall, moment in zip(walls, walls[1:], minutes[1:]):
        leapt = [before + n * MINUTE for n in range(1, (wall - before) // MINUTE)] if fixed else []
        again = fixed and wall in shown
        shown.add(wall)
        for candidate in [wall, *leapt]:
            matches = _plain_minute(minute, candidate.minute) and _plain_minute(hour, candidate.hour)
            if matches and not (again and candidate == wall):
                expected.add(moment)

    found, moment = [], start
    while True:
        following = next_cron_time(check_cron(f"{minute} {hour} * * *"), zone, moment)
        if following is None or following > minutes[-1]:
            break
        found.append(following)
        moment = following

    assert found == sorted(expected)


@pytest.mark.parametrize("expression", [
    "", "* * * *", "* * * * * *",
    "60 * * * *", "0 24 * * *", "0 0 31 2 *", "0 0 30 FEB *", "0 0 * * 9", "@often",
    "a b c d e", "*/0 * * * *", "5-1 * * * *", "9" * 300,
])  # fmt: skip
def test_a_wrong_expression_is_refused(expression: str) -> None:
    with pytest.raises(InvalidValueError, match="cron"):
        Recurrence(cron=expression)


@pytest.mark.parametrize(
    "name", ["Europe/Atlantis", "", "../../etc/passwd", "Europe", "/etc/localtime", "a\0b"]
)
def test_a_wrong_zone_is_refused(name: str) -> None:
    with pytest.raises(InvalidValueError, match="timezone"):
        Recurrence(cron="0 0 * * *", timezone=name)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"cron": "* * * * *", "every_s": 5},
        {"every_s": 0.5},
        {"every_s": float("nan")},
        {"every_s": True},
        {"every_s": 5, "jitter_s": -1},
        {"every_s": 5, "missed": "some"},
        {"at": at("2026-01-01T00:00").replace(tzinfo=None)},
        {"every_s": 5, "start_at": at("2026-01-02T00:00"), "end_at": at("2026-01-01T00:00")},
    ],
)
def test_what_does_not_go_together_is_refused(fields: Any) -> None:
    with pytest.raises(InvalidValueError):
        Recurrence(**fields)


def test_an_interval_counts_from_its_start_and_does_not_drift() -> None:
    recurrence = anchored(Recurrence(every_s=90), at("2026-01-01T00:00:10"))

    assert first_time(recurrence, at("2026-01-01T00:00:10")) == at("2026-01-01T00:00:10")
    assert next_time(recurrence, at("2025-01-01T00:00")) == at("2026-01-01T00:00:10")
    assert upcoming(recurrence, at("2026-01-01T00:02:00"), 2) == [
        at("2026-01-01T00:03:10"),
        at("2026-01-01T00:04:40"),
    ]
    # a billion intervals later it is still on its grid
    later = next_time(recurrence, at("4000-01-01T00:00"))
    assert later is not None
    assert (later - at("2026-01-01T00:00:10")) % timedelta(seconds=90) == timedelta(0)


def test_an_end_ends_it() -> None:
    recurrence = Recurrence(cron="0 * * * *", end_at=at("2026-01-01T02:00"))

    assert upcoming(recurrence, at("2026-01-01T00:30"), 5) == [at("2026-01-01T01:00"), at("2026-01-01T02:00")]
    due = due_times(recurrence, at("2026-01-01T02:00"), at("2026-01-01T02:00:01"))
    assert (due.times, due.next_at) == ((at("2026-01-01T02:00"),), None)
    assert next_time(Recurrence(cron="0 0 1 1 *"), at("9999-06-01T00:00")) is None


def test_a_start_holds_it_back() -> None:
    recurrence = Recurrence(cron="0 * * * *", start_at=at("2026-01-01T02:00"))

    assert first_time(recurrence, at("2025-01-01T00:00")) == at("2026-01-01T02:00")


def test_once_runs_once_even_when_it_is_late() -> None:
    when = at("2026-01-01T00:00")
    recurrence = Recurrence(at=when)

    assert first_time(recurrence, when + timedelta(days=3)) == when
    assert due_times(recurrence, when, when + timedelta(days=3)).times == (when,)
    assert due_times(recurrence, when, when + timedelta(days=3)).next_at is None
    assert due_times(Recurrence(at=when, missed=MissedRuns.SKIP), when, when + timedelta(days=3)).times == ()


HOURLY = {"cron": "0 * * * *"}
EVERY_HOUR = {"every_s": 3600, "start_at": at("2026-01-01T00:00")}


@pytest.mark.parametrize("when", [HOURLY, EVERY_HOUR], ids=["cron", "interval"])
@pytest.mark.parametrize(
    ("missed", "limit", "expected", "following"),
    [
        ("skip", 100, [], "2026-01-04T01:00"),
        ("one", 100, ["2026-01-04T00:00"], "2026-01-04T01:00"),
        ("all", 100, 72, "2026-01-04T01:00"),
        ("all", 10, 10, "2026-01-01T11:00"),
    ],
)
def test_after_three_days_without_a_scheduler(
    when: Any, missed: str, limit: int, expected: Any, following: str
) -> None:
    recurrence = Recurrence(missed=missed, **when)  # type: ignore[arg-type]
    due = due_times(recurrence, at("2026-01-01T01:00"), at("2026-01-04T00:30"), limit=limit)

    if isinstance(expected, int):
        assert len(due.times) == len(set(due.times)) == expected
        assert due.times[0] == at("2026-01-01T01:00")
    else:
        assert list(due.times) == [at(text) for text in expected]
    assert due.next_at == at(following)
    assert due.missed


@pytest.mark.parametrize("missed", list(MissedRuns))
def test_a_little_late_is_on_time(missed: MissedRuns) -> None:
    recurrence = Recurrence(every_s=10, start_at=at("2026-01-01T00:00"), missed=missed)
    due = due_times(recurrence, at("2026-01-01T00:00:10"), at("2026-01-01T00:00:35"))

    assert [moment.second for moment in due.times] == [10, 20, 30]
    assert not due.missed


def test_skipping_keeps_what_is_on_time() -> None:
    recurrence = Recurrence(every_s=10, start_at=at("2026-01-01T00:00"), missed=MissedRuns.SKIP, grace_s=15)
    due = due_times(recurrence, at("2026-01-01T00:00:10"), at("2026-01-01T02:00:04"))

    assert due.times == (at("2026-01-01T01:59:50"), at("2026-01-01T02:00"))
    assert due.next_at == at("2026-01-01T02:00:10")


@pytest.mark.parametrize("missed", list(MissedRuns))
def test_a_clock_that_is_set_back_makes_nothing_run_twice(missed: MissedRuns) -> None:
    recurrence = Recurrence(every_s=60, start_at=at("2026-01-01T00:00"), missed=missed)
    due = due_times(recurrence, at("2026-01-01T12:00"), at("2026-01-01T12:00:30"))
    assert due.times == (at("2026-01-01T12:00"),)
    assert due.next_at is not None

    again = due_times(recurrence, due.next_at, at("2026-01-01T10:00"))

    assert (again.times, again.next_at, again.missed) == ((), due.next_at, False)


@settings(max_examples=60)
@given(
    missed=st.sampled_from(MissedRuns),
    steps=st.lists(st.integers(-7200, 7200), min_size=1, max_size=30),
    limit=st.integers(1, 5),
)
def test_whatever_the_clock_does_no_time_runs_twice_and_none_out_of_order(
    missed: MissedRuns, steps: List[int], limit: int
) -> None:
    recurrence = Recurrence(cron="*/7 * * * *", timezone="Europe/Berlin", missed=missed)
    now = at("2026-10-24T23:00")
    next_at = first_time(recurrence, now)
    ran: List[datetime] = []
    for step in steps:
        now += timedelta(seconds=step)
        assert next_at is not None
        due = due_times(recurrence, next_at, now, limit=limit)
        assert all(moment <= now for moment in due.times)
        ran += due.times
        next_at = due.next_at

    assert ran == sorted(set(ran))
    if missed is MissedRuns.ALL and ran:
        assert ran == upcoming(recurrence, ran[0] - MINUTE, len(ran))


def test_a_decade_of_missed_runs_is_found_without_counting_them() -> None:
    every_minute = Recurrence(cron="* * * * *", missed=MissedRuns.ONE)
    due = due_times(every_minute, at("2016-01-01T00:00"), at("2026-01-01T00:00:30"))
    assert due.times == (at("2026-01-01T00:00"),)

    yearly = Recurrence(cron="0 3 1 1 *", missed=MissedRuns.ONE)
    due = due_times(yearly, at("2016-01-01T03:00"), at("2026-12-31T00:00"))
    assert (due.times, due.next_at) == ((at("2026-01-01T03:00"),), at("2027-01-01T03:00"))


def test_jitter_is_the_same_for_everybody_and_differs_from_time_to_time() -> None:
    recurrence = Recurrence(cron="0 * * * *", jitter_s=30)
    hours = upcoming(recurrence, at("2026-01-01T00:00"), 200)
    moved = [(jittered(recurrence, "s1", hour) - hour).total_seconds() for hour in hours]

    assert moved == [(jittered(recurrence, "s1", hour) - hour).total_seconds() for hour in hours]
    assert all(0 <= seconds < 30 for seconds in moved)
    assert len(set(moved)) == 200
    assert 10 < sum(moved) / 200 < 20
    assert moved != [(jittered(recurrence, "s2", hour) - hour).total_seconds() for hour in hours]
    assert jittered(Recurrence(cron="0 * * * *"), "s1", hours[0]) == hours[0]


def test_it_comes_back_from_its_dictionary() -> None:
    recurrence = Recurrence(
        cron="@weekly",
        timezone="Asia/Tokyo",
        end_at=at("2027-01-01T00:00"),
        jitter_s=3,
        missed=MissedRuns.ALL,
    )

    assert Recurrence.from_dict(recurrence.to_dict()) == recurrence
    with pytest.raises(InvalidValueError, match="crom"):
        Recurrence.from_dict({"crom": "* * * * *"})


def test_the_zone_data_are_those_of_the_tests() -> None:
    # the table rests on these; a system whose zone data differ should say so here
    for name, hours in (("Australia/Lord_Howe", 10.5), ("Africa/Cairo", 3.0)):
        assert at("2026-07-01T00:00").astimezone(ZoneInfo(name)).utcoffset() == timedelta(hours=hours)
