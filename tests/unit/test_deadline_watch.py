"""One timer for the deadlines of all calls of a loop: who is told when, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import time
from typing import List, Optional

from modules.storage.backends.deadline_watch import DeadlineWatch


class Waiting:
    """Something that waits; notes when it was told, and asks to be told again as often as `again` says."""

    def __init__(self, seconds: float, again: int = 0) -> None:
        self.deadline = time.monotonic() + seconds
        self.first = self.deadline
        self.told: List[float] = []
        self.done = asyncio.Event()
        self._again = again

    def expire(self) -> Optional[float]:
        self.told.append(time.monotonic())
        if len(self.told) <= self._again:
            return time.monotonic() + 0.01
        self.done.set()
        return None


def _watch() -> DeadlineWatch:
    return DeadlineWatch(asyncio.get_running_loop())


async def _told(*waiting: Waiting) -> None:
    await asyncio.wait_for(asyncio.gather(*[one.done.wait() for one in waiting]), 60)


async def test_each_is_told_once_and_not_before_its_time() -> None:
    watch = _watch()
    late, early, middle = Waiting(0.06), Waiting(0.01), Waiting(0.03)
    for one in (late, early, middle):
        watch.watch(one)
    await _told(late, early, middle)
    for one in (late, early, middle):
        assert len(one.told) == 1
        assert one.told[0] >= one.first


async def test_one_that_was_discarded_is_not_told() -> None:
    watch = _watch()
    gone, stays = Waiting(0.01), Waiting(0.03)
    watch.watch(gone)
    watch.watch(stays)
    watch.discard(gone)
    watch.discard(gone)
    await _told(stays)
    assert not gone.told


async def test_one_that_asks_for_it_is_told_again() -> None:
    watch = _watch()
    stubborn = Waiting(0.01, again=3)
    watch.watch(stubborn)
    await _told(stubborn)
    assert len(stubborn.told) == 4


async def test_a_passed_deadline_is_told_at_once_and_not_inside_the_call() -> None:
    watch = _watch()
    passed = Waiting(-1.0)
    watch.watch(passed)
    assert not passed.told
    await _told(passed)


async def test_an_earlier_one_sets_the_timer_again() -> None:
    watch = _watch()
    far, near = Waiting(3600), Waiting(0.01)
    watch.watch(far)
    watch.watch(near)
    await _told(near)
    assert not far.told


async def test_one_that_is_watched_while_others_are_told_is_not_forgotten() -> None:
    watch = _watch()
    second = Waiting(3600)

    class First(Waiting):
        def expire(self) -> Optional[float]:
            second.deadline = time.monotonic() + 0.01
            watch.watch(second)
            return super().expire()

    watch.watch(First(0.01))
    await _told(second)
