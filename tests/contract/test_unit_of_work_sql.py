"""Users' own SQL and ORM code inside a unit of work, on every back end."""

from __future__ import annotations

import asyncio
from typing import Any, List, Optional

import pytest
from sqlalchemy import JSON, ForeignKey, select, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from modules.storage.unit_of_work import UnitOfWork, UnitOfWorkError, UnitOfWorkState
from modules.store_common.errors import ConstraintError, DeadlineExceededError, StorageError

from . import scratch


class OwnBase(DeclarativeBase):
    pass


class Thing(OwnBase):
    __tablename__ = "things"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    parent: Mapped[int] = mapped_column(ForeignKey("things.id"), nullable=True)


class Document(OwnBase):
    __tablename__ = "documents"
    id: Mapped[int] = mapped_column(primary_key=True)
    a: Mapped[Any] = mapped_column(JSON)
    b: Mapped[Any] = mapped_column(JSON().with_variant(JSONB(), "postgresql"))


@pytest.fixture
async def things(pool: Any) -> Any:
    await scratch.create_things(pool)
    return pool


def unit(pool: Any, timeout: float = 60.0) -> UnitOfWork:
    return UnitOfWork(pool.executor, lambda name, executor: executor, timeout_s=timeout)


async def _names(pool: Any) -> List[str]:
    found: List[str] = await pool.executor.run(scratch.names)
    return found


async def test_a_session_joins_the_units_transaction(things: Any) -> None:
    async with unit(things) as uow:
        await uow.kv.run(scratch.add, 1, "one")
        async with uow.session() as session:
            assert (await session.scalars(select(Thing.name))).all() == ["one"], "sees the unit's writes"
            session.add(Thing(id=2, name="two"))
        assert await uow.kv.run(scratch.names) == ["one", "two"], "the unit sees the session's writes"
        async with uow.session() as session:
            session.add(Thing(id=3, name="three"))
        others = asyncio.create_task(_names(things)) if things.dialect == "postgresql" else None
        if others is not None:
            assert await others == []
    assert await _names(things) == ["one", "two", "three"]


async def test_a_rolled_back_unit_takes_the_sessions_work_with_it(things: Any) -> None:
    with pytest.raises(ZeroDivisionError):
        async with unit(things) as uow:
            async with uow.session() as session:
                session.add(Thing(id=1, name="one"))
                await session.commit()
            _ = 1 / 0
    assert await _names(things) == []


async def test_neither_commit_nor_rollback_of_the_session_ends_the_unit(things: Any) -> None:
    async with unit(things) as uow:
        await uow.kv.run(scratch.add, 1, "one")
        async with uow.session() as session:
            session.add(Thing(id=2, name="two"))
            await session.rollback()
            session.add(Thing(id=3, name="three"))
            await session.commit()
            session.add(Thing(id=4, name="four"))
        assert uow.state is UnitOfWorkState.ACTIVE
        await uow.kv.run(scratch.add, 5, "five")
    assert await _names(things) == ["one", "three", "four", "five"]


async def test_a_session_block_that_raises_undoes_itself_alone(things: Any) -> None:
    async with unit(things) as uow:
        await uow.kv.run(scratch.add, 1, "one")
        with pytest.raises(ZeroDivisionError):
            async with uow.session() as session:
                session.add(Thing(id=2, name="two"))
                await session.flush()
                _ = 1 / 0
        with pytest.raises(SQLAlchemyError):
            async with uow.session() as session:
                session.add(Thing(id=1, name="taken"))
        await uow.kv.run(scratch.add, 3, "three")
    assert await _names(things) == ["one", "three"]


async def test_savepoints_of_the_session(things: Any) -> None:
    async with unit(things) as uow, uow.session() as session:
        session.add(Thing(id=1, name="one"))
        with pytest.raises(SQLAlchemyError):
            async with session.begin_nested():
                session.add(Thing(id=1, name="again"))
        session.add(Thing(id=2, name="two"))
    assert await _names(things) == ["one", "two"]


async def test_the_units_stores_can_be_used_inside_a_session_block(things: Any) -> None:
    async def work() -> None:
        async with unit(things) as uow, uow.session() as session:
            session.add(Thing(id=1, name="one"))
            await session.flush()
            await uow.kv.run(scratch.add, 2, "two")
            assert await uow.kv.run(scratch.names) == ["one", "two"]

    await asyncio.wait_for(work(), 60)
    assert await _names(things) == ["one", "two"]


async def test_another_tasks_work_waits_for_the_session_and_is_not_undone_with_it(things: Any) -> None:
    async with unit(things) as uow:
        with pytest.raises(ZeroDivisionError):
            async with uow.session() as session:
                session.add(Thing(id=1, name="one"))
                await session.flush()
                second = asyncio.create_task(uow.kv.run(scratch.add, 2, "two"))
                await asyncio.sleep(0.02)
                assert not second.done()
                _ = 1 / 0
        # not awaited: the commit itself comes after what was asked for before
    assert second.done()
    assert await _names(things) == ["two"]


async def test_a_task_that_waits_for_anothers_session_waits_no_longer_than_the_deadline(things: Any) -> None:
    second: Optional[asyncio.Task[Any]] = None
    while second is None:  # on a busy machine its time may be over before the other task waits
        with pytest.raises((StorageError, SQLAlchemyError)):
            async with unit(things, timeout=1.0) as uow, uow.session() as session:
                session.add(Thing(id=1, name="one"))
                await session.flush()
                second = asyncio.create_task(uow.kv.run(scratch.add, 2, "two"))
                await asyncio.wait({second}, timeout=60)
                assert second.done(), "waits for the session for ever"
    assert isinstance(second.exception(), DeadlineExceededError)
    assert uow.state is UnitOfWorkState.ROLLED_BACK
    assert await _names(things) == []


async def test_a_cancelled_waiter_hands_its_turn_on(things: Any) -> None:
    async with unit(things) as uow:
        async with uow.session() as session:
            session.add(Thing(id=1, name="one"))
            await session.flush()
            waiting = [asyncio.create_task(uow.session().__aenter__()) for _ in range(2)]
            last = asyncio.create_task(uow.kv.run(scratch.add, 2, "two"))
            await asyncio.sleep(0.01)
            for task in waiting:
                task.cancel()
        await asyncio.wait_for(last, 60)
        await asyncio.gather(*waiting, return_exceptions=True)
    assert await _names(things) == ["one", "two"]


async def test_an_error_while_another_tasks_statement_is_under_way(things: Any) -> None:
    sibling: Optional[asyncio.Task[Any]] = None
    while sibling is None:
        try:
            async with unit(things, timeout=1.0) as uow:
                await uow.kv.run(scratch.add, 1, "one")
                sibling = asyncio.create_task(uow.kv.run(scratch.slow, 600.0))
                await asyncio.sleep(0.05)
                _ = 1 / 0
        except ZeroDivisionError:
            continue
        except DeadlineExceededError:
            # on a busy machine its time may be over before the error
            if sibling is not None:
                await asyncio.wait({sibling})
                assert isinstance(sibling.exception(), StorageError)
                sibling = None
    assert uow.state is UnitOfWorkState.ROLLED_BACK
    with pytest.raises(StorageError):
        await asyncio.wait_for(sibling, 60)
    assert await asyncio.wait_for(_names(things), 60) == []
    await asyncio.wait_for(things.executor.run(scratch.add, 2, "two"), 60)


async def test_sql_operations_run_before_commit_in_order(things: Any) -> None:
    seen = []

    async def in_async_code(session: Any) -> None:
        seen.append("async")
        session.add(Thing(id=2, name="two"))

    def in_sync_code(session: Any) -> None:
        seen.append("sync")
        assert session.scalars(select(Thing.name).order_by(Thing.id)).all() == ["one", "two"]
        session.add(Thing(id=3, name="three"))

    async with unit(things) as uow:
        uow.add_sql_operation(in_async_code)
        uow.add_sql_operation(in_sync_code)
        await uow.kv.run(scratch.add, 1, "one")
        assert seen == []
    assert seen == ["async", "sync"]
    assert await _names(things) == ["one", "two", "three"]


async def test_a_unit_of_nothing_but_sql_operations(things: Any) -> None:
    async with unit(things) as uow:
        uow.add_sql_operation(
            lambda session: session.execute(text("INSERT INTO things (id, name) VALUES (1, 'x')"))
        )
    assert await _names(things) == ["x"]


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_failing_sql_operation_rolls_everything_back(things: Any, kind: str) -> None:
    undone = []

    async def fails(session: Any) -> None:
        session.add(Thing(id=2, name="two"))
        raise ZeroDivisionError

    def fails_too(session: Any) -> None:
        session.add(Thing(id=2, name="two"))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        async with unit(things) as uow:
            uow.add_compensating_action(lambda: undone.append(1))
            await uow.kv.run(scratch.add, 1, "one")
            uow.add_sql_operation(fails if kind == "async" else fails_too)
    assert uow.state is UnitOfWorkState.ROLLED_BACK
    assert undone == [1]
    assert await _names(things) == []


async def test_a_commit_that_the_database_refuses(things: Any) -> None:
    """A deferred foreign key is checked by COMMIT: a typed error, nothing kept, and the outcome is known."""
    undone = []
    with pytest.raises(ConstraintError):
        async with unit(things) as uow:
            uow.add_compensating_action(lambda: undone.append(1))
            await uow.kv.run(scratch.add, 1, "one", 99)
    assert uow.state is UnitOfWorkState.ROLLED_BACK
    assert undone == [1]
    assert await _names(things) == []
    await things.executor.run(scratch.add, 1, "fine")


async def test_a_read_that_the_database_refused_never_lets_the_unit_claim_a_commit(things: Any) -> None:
    """PostgreSQL answers COMMIT of a failed transaction with a quiet ROLLBACK."""
    try:
        async with unit(things) as uow:
            await uow.kv.run(scratch.add, 1, "one")
            with pytest.raises(StorageError):
                await uow.kv.run(scratch.broken_read)
    except StorageError:
        assert uow.state is UnitOfWorkState.ROLLED_BACK
        assert await _names(things) == []
    else:
        assert uow.state is UnitOfWorkState.COMMITTED
        assert await _names(things) == ["one"]


async def test_a_statement_under_way_ends_at_the_units_deadline(things: Any) -> None:
    with pytest.raises(DeadlineExceededError):
        async with unit(things, timeout=0.3) as uow:
            await uow.kv.run(scratch.add, 1, "one")
            await uow.kv.run(scratch.slow, 30.0)
    assert uow.state is UnitOfWorkState.ROLLED_BACK
    await asyncio.wait_for(things.executor.run(scratch.add, 2, "two"), 60)
    assert await _names(things) == ["two"]


async def test_a_defect_in_an_operation_leaves_the_writer_alive(things: Any) -> None:
    with pytest.raises(UnitOfWorkError):
        async with unit(things) as uow:
            with pytest.raises(ValueError, match="on purpose"):
                await uow.kv.run(scratch.add_and_fail, 1, "one")
    await things.executor.run(scratch.add, 2, "two")
    assert await _names(things) == ["two"]


async def test_a_session_leaves_the_connection_as_the_stores_need_it(storage: Any) -> None:
    """SQLAlchemy sets JSON codecs on the connections that it gets; here it only borrows one."""
    values: List[Any] = ["text", "5", 5, None, {"a": [1, "x"]}, [], -0.0]
    async with storage.unit_of_work() as uow:
        async with uow.session() as session:
            await session.execute(text("SELECT 1"))
        for number, value in enumerate(values):
            await uow.kv.set("n", str(number), value)
            assert await uow.kv.get("n", str(number)) == value
    async with storage.sql_pool.session() as session:
        await session.execute(text("SELECT 1"))
    for number, value in enumerate(values):
        assert await storage.kv.get("n", str(number)) == value
        await storage.kv.set("n", str(number), value)
        assert await storage.kv.get("n", str(number)) == value


async def test_json_columns_of_users_own_tables(pool: Any) -> None:
    admin = scratch.admin(pool)
    await admin.execute_sql(
        "CREATE TABLE documents (id INTEGER PRIMARY KEY, a JSON, b JSONB)"
        if pool.dialect == "postgresql"
        else "CREATE TABLE documents (id INTEGER PRIMARY KEY, a JSON, b JSON)"
    )
    value = {"a": [1, None, "x"], "b": {"c": True}}
    async with pool.session() as session:
        session.add(Document(id=1, a=value, b=value))
    async with pool.session() as session:
        found = await session.get(Document, 1)
    assert found is not None
    assert (found.a, found.b) == (value, value)


async def test_the_pools_own_session(things: Any) -> None:
    async with things.session() as session:
        session.add(Thing(id=1, name="one"))
    with pytest.raises(ZeroDivisionError):
        async with things.session() as session:
            session.add(Thing(id=2, name="two"))
            await session.flush()
            _ = 1 / 0
    async with things.session() as session:
        loaded = await session.get(Thing, 1)
    assert loaded is not None
    assert loaded.name == "one", "usable after the block"
    assert await _names(things) == ["one"]


async def test_a_cancelled_session_is_rolled_back(things: Any) -> None:
    inside = asyncio.Event()

    async def work() -> None:
        async with things.session() as session:
            session.add(Thing(id=1, name="one"))
            await session.flush()
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(things.executor.run(scratch.add, 2, "two"), 60)
    assert await _names(things) == ["two"]


async def test_foreign_keys_hold_in_sessions(things: Any) -> None:
    with pytest.raises((SQLAlchemyError, StorageError)):
        async with things.session() as session:
            session.add(Thing(id=1, name="one", parent=99))
    assert await _names(things) == []


async def test_sessions_of_two_units_in_one_task_do_not_mix(things: Any) -> None:
    if things.dialect == "sqlite":
        pytest.skip("SQLite has one writer's turn: a second unit that writes in the same task is refused")
    async with things.session() as outer:
        async with things.session() as inner:
            inner.add(Thing(id=2, name="inner"))
        outer.add(Thing(id=1, name="outer"))
        await outer.flush()
        await outer.rollback()
    assert await things.executor.run(scratch.names) == ["inner"], "each worked in its own transaction"
