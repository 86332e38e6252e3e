"""P28 for the key-value store: random calls on a real database and on a dict give the same answers.

The machine also lets entries expire, sweeps, fails units of calls, and closes and reopens the database.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from typing import Any, Awaitable, Dict, Iterator, Optional, Tuple, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from modules.store_common.errors import ConcurrencyError
from modules.store_common.ids import new_id
from modules.store_common.tenancy import TenantPolicy
from modules.store_common.values import encode_json
from modules.Tools.Base_Tools.kv_store import (
    ABSENT,
    InvalidValueTypeError,
    KeyValueMaintenance,
    KeyValueStore,
    NamespaceQuotaExceededError,
)
from tests.support.backends import ABILITIES
from tests.support.kv import expire, open_pool, usage
from tests.support.values import contract_values, same

R = TypeVar("R")
_RUNS = int(os.environ.get("ATLAS_TEST_STATE_MACHINE_RUNS", "20"))
_LIMIT = 75

_spaces = st.sampled_from(["a", "b", "a\U0010ffff"])
_keys = st.sampled_from(["k", "k1", "k10", "K", "é", "\U0010ffff", "k\U0010ffff"])
_values = st.one_of(
    st.integers(-5, 5),
    contract_values(max_leaves=3),
    st.binary(max_size=8),
    st.sampled_from(["x" * 30, "x" * 40, "x" * 60]),
)
_ttls = st.sampled_from([None, None, 1000.0])


@dataclass
class Held:
    """What the model knows of an entry."""

    value: Any
    version: int
    lives: bool
    dead: bool = False


class _World:
    """The database and the loop on which the machine talks to it."""

    def __init__(self, settings_: Any, *, reopens: bool) -> None:
        self.loop = asyncio.new_event_loop()
        self.settings = settings_
        self.reopens = reopens
        self.pool = self.run(open_pool(settings_))

    def run(self, call: Awaitable[R]) -> R:
        return self.loop.run_until_complete(call)  # type: ignore[arg-type]

    def close(self) -> None:
        self.run(self.pool.shutdown())
        self.loop.close()


def _machine(world: _World, limit: int) -> Any:
    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.tenant = new_id()
            self.model: Dict[Tuple[str, str], Held] = {}
            self.connect()

        def connect(self) -> None:
            policy = TenantPolicy(default=self.tenant)
            self.kv = KeyValueStore(world.pool.executor, policy, namespace_quota_bytes=limit)

        def live(self, space: str, key: str) -> Optional[Held]:
            held = self.model.get((space, key))
            return None if held is None or held.dead else held

        def fits(self, space: str, key: str, value: Any) -> bool:
            """Whether the limit lets this be written, expired entries being removed first if they must be."""
            if not limit:
                return True
            own = self.model.get((space, key))
            old = 0 if own is None else _size(key, own.value)
            grows = _size(key, value) - old
            if grows <= 0:
                return True
            used = {k: h for (s, k), h in self.model.items() if s == space}
            everything = sum(_size(k, h.value) for k, h in used.items())
            if everything + grows <= limit:
                return True
            expired = [k for k, h in used.items() if h.dead and k != key]
            if everything + grows - sum(_size(k, used[k].value) for k in expired) <= limit:
                for k in expired:
                    del self.model[space, k]
                return True
            return False

        def written(self, space: str, key: str, value: Any, ttl: Optional[float]) -> int:
            live = self.live(space, key)
            version = 1 if live is None else live.version + 1
            self.model[space, key] = Held(value, version, ttl is not None)
            return version

        @rule(space=_spaces, key=_keys, value=_values, ttl=_ttls)
        def set(self, space: str, key: str, value: Any, ttl: Optional[float]) -> None:
            call = self.kv.set(space, key, value, ttl_seconds=ttl)
            if self.fits(space, key, value):
                assert world.run(call) == self.written(space, key, value, ttl)
            else:
                with pytest.raises(NamespaceQuotaExceededError):
                    world.run(call)

        @rule(space=_spaces, key=_keys, value=_values)
        def set_absent(self, space: str, key: str, value: Any) -> None:
            call = self.kv.set(space, key, value, only_if_absent=True)
            if self.live(space, key) is not None:
                assert world.run(call) == 0
            elif self.fits(space, key, value):
                assert world.run(call) == self.written(space, key, value, None) == 1
            else:
                with pytest.raises(NamespaceQuotaExceededError):
                    world.run(call)

        @rule(space=_spaces, key=_keys, expected=st.integers(0, 3))
        def set_version(self, space: str, key: str, expected: int) -> None:
            live = self.live(space, key)
            actual = 0 if live is None else live.version
            call = self.kv.set(space, key, 1, expected_version=expected)
            if actual != expected:
                with pytest.raises(ConcurrencyError) as found:
                    world.run(call)
                assert (found.value.expected, found.value.actual) == (expected, actual)
            elif self.fits(space, key, 1):
                assert world.run(call) == self.written(space, key, 1, None)
            else:
                with pytest.raises(NamespaceQuotaExceededError):
                    world.run(call)

        @rule(space=_spaces, key=_keys, right=st.booleans(), value=st.integers(0, 9))
        def compare_and_set(self, space: str, key: str, right: bool, value: int) -> None:
            live = self.live(space, key)
            expected: Any = "something else"
            if right:
                expected = ABSENT if live is None else live.value
            call = self.kv.compare_and_set(space, key, value, expected=expected)
            if not right and not (live is not None and same(live.value, expected)):
                assert world.run(call) == 0
            elif self.fits(space, key, value):
                assert world.run(call) == self.written(space, key, value, None)
            else:
                with pytest.raises(NamespaceQuotaExceededError):
                    world.run(call)

        @rule(space=_spaces, key=_keys, amount=st.integers(-200, 200))
        def increment(self, space: str, key: str, amount: int) -> None:
            live = self.live(space, key)
            call = self.kv.increment(space, key, amount)
            if live is not None and type(live.value) is not int:
                with pytest.raises(InvalidValueTypeError):
                    world.run(call)
                return
            total = amount if live is None else live.value + amount
            if not -(2**63) <= total < 2**63:
                call.close()  # the contract suite looks at the edges
            elif self.fits(space, key, total):
                lives = live is not None and live.lives
                assert world.run(call) == total
                self.written(space, key, total, 1000.0 if lives else None)
            else:
                with pytest.raises(NamespaceQuotaExceededError):
                    world.run(call)

        @rule(space=_spaces, key=_keys)
        def delete(self, space: str, key: str) -> None:
            assert world.run(self.kv.delete(space, key)) is (self.live(space, key) is not None)
            self.model.pop((space, key), None)

        @rule(space=_spaces, key=_keys, ttl=_ttls)
        def touch(self, space: str, key: str, ttl: Optional[float]) -> None:
            live = self.live(space, key)
            assert world.run(self.kv.touch(space, key, ttl_seconds=ttl)) is (live is not None)
            if live is not None:
                live.lives = ttl is not None

        @rule(space=_spaces)
        def clear(self, space: str) -> None:
            mine = [place for place in self.model if place[0] == space]
            assert world.run(self.kv.clear(space)) == sum(not self.model[place].dead for place in mine)
            for place in mine:
                del self.model[place]

        @rule(space=_spaces, key=_keys)
        def let_expire(self, space: str, key: str) -> None:
            held = self.live(space, key)
            if held is not None:
                world.run(expire(self.kv, space, key, tenant_id=self.tenant))
                held.dead = True

        @rule(space=_spaces)
        def leave_something_expired(self, space: str) -> None:
            if self.fits(space, "old", "x" * 40):
                world.run(self.kv.set(space, "old", "x" * 40))
                self.written(space, "old", "x" * 40, 1000.0)
                self.let_expire(space, "old")

        @rule()
        def sweep(self) -> None:
            dead = [place for place, held in self.model.items() if held.dead]
            assert world.run(KeyValueMaintenance(world.pool.executor).sweep_expired()) >= len(dead)
            for place in dead:
                del self.model[place]

        @precondition(lambda self: world.reopens)
        @rule()
        def reopen(self) -> None:
            world.run(world.pool.shutdown())
            world.run(world.pool.initialize())
            self.connect()

        @rule(space=_spaces, prefix=st.sampled_from(["", "k", "k1", "\U0010ffff", "k\U0010ffff", "z"]))
        def pages(self, space: str, prefix: str) -> None:
            expected = sorted(
                k for (s, k), h in self.model.items() if s == space and not h.dead and k.startswith(prefix)
            )
            seen, cursor = [], None
            while True:
                page = world.run(self.kv.list(space, prefix, limit=2, cursor=cursor))
                seen += [entry.key for entry in page.entries]
                cursor = page.next_cursor
                if cursor is None:
                    break
            assert seen == expected

        @rule(space=_spaces, key=_keys)
        def look(self, space: str, key: str) -> None:
            live = self.live(space, key)
            assert world.run(self.kv.exists(space, key)) is (live is not None)
            entry = world.run(self.kv.get_entry(space, key))
            assert (entry is None) is (live is None)
            if entry is not None and live is not None:
                assert same(entry.value, live.value)
                assert entry.version == live.version
                assert (entry.expires_at is not None) is live.lives
                assert entry.size_bytes == _size(key, live.value)

        @invariant()
        def the_same_entries(self) -> None:
            for space in ("a", "b", "a\U0010ffff"):
                expected = {k: h.value for (s, k), h in self.model.items() if s == space and not h.dead}
                found = {e.key: e.value for e in world.run(self.kv.list(space)).entries}
                assert same(dict(sorted(found.items())), dict(sorted(expected.items())))

        @invariant()
        def the_same_namespaces(self) -> None:
            expected = sorted({space for (space, _), held in self.model.items() if not held.dead})
            assert world.run(self.kv.list_namespaces()).namespaces == expected

        def teardown(self) -> None:
            for space in ("a", "b", "a\U0010ffff"):
                world.run(self.kv.clear(space))
            if limit and self.model:
                world.run(usage(self.kv))

    return Machine


def _size(key: str, value: Any) -> int:
    data = value if isinstance(value, bytes) else encode_json(value, "v").encode()
    return len(key.encode()) + len(data)


@pytest.fixture
def world(migrated_settings: Any, backend: str) -> Iterator[_World]:
    made = _World(migrated_settings, reopens="reopen" in ABILITIES[backend])
    made.runs = _RUNS if "fast" in ABILITIES[backend] else 3
    yield made
    made.close()


@pytest.mark.parametrize("limit", [0, _LIMIT], ids=["no-limit", "limit"])
def test_the_store_behaves_like_a_dict(world: _World, limit: int) -> None:
    run_state_machine_as_test(
        _machine(world, limit),
        settings=settings(max_examples=world.runs, stateful_step_count=50, deadline=None),
    )
