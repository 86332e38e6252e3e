"""Revision 0009: messages that wait to be embedded are carried over into the outbox, and changes go on being noted there."""

from __future__ import annotations

from typing import Any, Dict, List

import pytest
from sqlalchemy import text

from modules.conversation_store.repository import ConversationStore
from modules.storage.migrations import runner
from modules.storage.migrations.comparison import differences
from modules.storage.pool import SQLPool
from modules.storage.semantic import SemanticIndex
from modules.store_common.tenancy import TenantPolicy
from tests.contract.test_embedding_changes import Shelf
from tests.contract.test_migrations import made_by_ddl
from tests.support.embedding import MeaningEmbedder

_INTO = (
    "INSERT INTO atlas_embedding_backlog (collection, tenant_id, conversation_id, sequence, mark, attempts)"
    " SELECT i.collection, {row}.tenant_id, {row}.conversation_id, {row}.sequence, 1, 0 FROM {source}"
    " ON CONFLICT (collection, tenant_id, conversation_id, sequence) DO UPDATE SET mark = atlas_embedding_backlog.mark + 1"
)
_EACH = "atlas_embedding_indexes i WHERE true"
#: The triggers of the release before, as far as they differ from today's.
_BEFORE: Dict[str, List[str]] = {
    "sqlite": [
        f"CREATE TRIGGER atlas_embedding_{name} AFTER {event} ON atlas_messages"
        f" BEGIN {_INTO.format(row=row, source=_EACH)}; END"
        for name, event, row in (
            ("add", "INSERT", "new"),
            ("change", "UPDATE OF content", "new"),
            ("remove", "DELETE", "old"),
        )
    ],
    "postgresql": [
        f"CREATE FUNCTION atlas_embedding_{name}() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN {_INTO.format(row=row, source=source)}; RETURN NULL; END $$;"
        f"CREATE TRIGGER atlas_embedding_{name} AFTER {event} ON atlas_messages {each}"
        f" EXECUTE FUNCTION atlas_embedding_{name}()"
        for name, event, row, source, each in (
            ("add", "INSERT", "n", f"n CROSS JOIN {_EACH}", "REFERENCING NEW TABLE AS n FOR EACH STATEMENT"),
            ("change", "UPDATE OF content", "new", _EACH, "FOR EACH ROW"),
            ("remove", "DELETE", "n", f"n CROSS JOIN {_EACH}", "REFERENCING OLD TABLE AS n FOR EACH STATEMENT"),
        )
    ],
}  # fmt: skip
_LATER = {
    "sqlite": "(CAST(strftime('%s', 'now') AS INTEGER) + 600) * 1000000",
    "postgresql": "statement_timestamp() + interval '10 min'",
}


def _upgrade_to(pool: SQLPool, revision: str) -> None:
    from alembic import command

    with pool.engine.connect() as connection, runner._locked(connection, 30.0):
        config = runner._config("english")
        config.attributes["connection"] = connection
        with runner._one_run:
            command.upgrade(config, revision)


def _run(pool: SQLPool, *statements: str) -> None:
    with pool.engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement.replace("%", "%%") if pool.dialect == "postgresql" else statement)  # fmt: skip


def _rows(pool: SQLPool, query: str) -> List[Any]:
    with pool.engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(query))]


@pytest.mark.parametrize("is_offered", [True, False], ids=["a backlog", "an empty backlog"])
async def test_what_waits_is_carried_over_and_changes_are_noted(pool: SQLPool, is_offered: bool) -> None:
    _upgrade_to(pool, "0008")
    shelf = Shelf()
    await shelf.initialize()
    index = SemanticIndex(pool.executor, shelf, MeaningEmbedder())
    known = await index.registration()
    store = ConversationStore(pool.executor, TenantPolicy(), semantic=index)
    await store.create_conversation("c")
    _run(
        pool,
        "INSERT INTO atlas_embedding_indexes (collection, filled, filled_tenant_id, filled_conversation_id,"
        f" filled_sequence, created_at) SELECT '{known}', 1, '', '', 0, created_at FROM atlas_conversations",
        *_BEFORE[pool.dialect],
    )
    if is_offered:
        for number in range(12):
            await store.add_message("c", "user", f"cat {number}", message_id=f"m{number}")
        await store.record_edit("c", "m0", content="my car")
        _run(
            pool,
            "UPDATE atlas_embedding_backlog SET attempts = 3 WHERE sequence = 11",
            f"UPDATE atlas_embedding_backlog SET claimed_until = {_LATER[pool.dialect]} WHERE sequence >= 11",
            "UPDATE atlas_embedding_backlog SET claimed_by = 'the dead' WHERE sequence = 12",
        )

    assert runner.upgrade(pool.engine) == ["0009"]

    assert differences(pool.engine) == []
    carried = _rows(
        pool,
        "SELECT tenant_id, target, kind, key, state, attempts, available_at > staged_at, version > applied"
        " FROM atlas_outbox ORDER BY CAST(key AS integer)",
    )
    assert carried == [
        ("default", f"embedding:{known}", "c", str(n), "pending", 3 if n == 11 else 0, n >= 11, True)
        for n in range(1, 13 if is_offered else 1)
    ]
    await store.add_message("c", "user", "a late cat", message_id="late")
    await index.register()
    assert (await index.progress()).is_filled, "it is known, and nothing was lost"
    assert (await index.embed_pending()).embedded == (11 if is_offered else 1)
    assert (await index.progress()).pending == (2 if is_offered else 0)
    await store.soft_delete_message("c", "late")
    assert (await index.embed_pending()).removed == 1
    if is_offered:
        found = await index.nearest("automobile", tenant_id="default", limit=1)
        assert list(found.scores) == [("c", 1)], "embedded as it was when it was embedded"

    migrated = made_by_ddl(pool.engine)["trigger"]
    assert await index.unregister()
    assert _rows(pool, "SELECT count(*) FROM atlas_outbox") == [(0,)]
    await index.register()
    assert made_by_ddl(pool.engine)["trigger"] == migrated, "the triggers that a registration makes"
    await shelf.shutdown()
