"""The statements that matter use an index however large the table is: read from EXPLAIN on both dialects."""

from __future__ import annotations

from typing import Any, Dict, List

import pytest

from modules.storage.statements import Statement
from modules.Tools.Base_Tools import kv_maintenance, kv_statements
from modules.Tools.Base_Tools.kv_store import KeyValueStore
from tests.support import kv as support

kv, kv_pool = support.kv, support.kv_pool

_KEY = "pk_atlas_kv_entries"
_EXPIRY = "ix_atlas_kv_entries_tenant_id_expires_at"
_ONE = {"tenant": "t1", "space": "n1", "name": "k1"}
_PAGE = {"tenant": "t1", "space": "n1", "after": "k", "upper": "l", "row_limit": 10}
STATEMENTS: Dict[str, Any] = {
    "get": (kv_statements.GET, _ONE, _KEY),
    "list": (kv_statements.LIST_FROM_BELOW, _PAGE, _KEY),
    "list after": (kv_statements.LIST_AFTER, _PAGE, _KEY),
    "namespaces": (kv_statements.LIST_NAMESPACES, {"tenant": "t1", "after": "", "row_limit": 10}, _KEY),
    "delete": (kv_statements.DELETE, _ONE, _KEY),
    "clear": (kv_statements.CLEAR, _PAGE, _KEY),
    "sweep": (kv_maintenance._SWEEP, {"tenant": "t1", "row_limit": 10}, _EXPIRY),
    "tenants to sweep": (kv_maintenance._EXPIRED_TENANTS, {"row_limit": 10}, _EXPIRY),
}


def _explain(engine: Any, statement: Statement, parameters: Dict[str, Any]) -> List[str]:
    compiled = statement.compiled(engine.dialect.name)
    values = compiled.bind(parameters)
    with engine.connect() as connection:
        cursor = connection.connection.cursor()
        if engine.dialect.name == "sqlite":
            cursor.execute(f"EXPLAIN QUERY PLAN {compiled.sql}", values)
            return [row[3] for row in cursor.fetchall()]
        # the plan that is kept for any parameters, which is what a prepared statement ends up with
        types = ", ".join("text" if isinstance(value, str) else "integer" for value in values)
        literals = ", ".join(f"'{value}'" if isinstance(value, str) else str(value) for value in values)
        cursor.execute("SET plan_cache_mode = force_generic_plan")
        cursor.execute(f"PREPARE asked ({types}) AS {compiled.sql}")
        cursor.execute(f"EXPLAIN EXECUTE asked ({literals})")
        return [row[0] for row in cursor.fetchall()]


@pytest.fixture
async def filled(kv: KeyValueStore, kv_pool: Any) -> Any:
    for tenant in range(4):
        for namespace in range(4):
            items = {f"k{i}": i for i in range(400)}
            await kv.set_many(f"n{namespace}", items, tenant_id=f"t{tenant}", ttl_seconds=1000)
    with kv_pool.engine.begin() as connection:
        connection.exec_driver_sql("ANALYZE atlas_kv_entries")
    return kv_pool.engine


@pytest.mark.parametrize("name", STATEMENTS)
async def test_it_uses_its_index(filled: Any, name: str) -> None:
    statement, parameters, index = STATEMENTS[name]
    plan = _explain(filled, statement, parameters)
    text = "\n".join(plan)

    if filled.dialect.name == "postgresql":
        assert index in text, text
        assert "Seq Scan on atlas_kv_entries" not in text, text
    else:
        wanted = "sqlite_autoindex_atlas_kv_entries_1" if index == _KEY else index
        assert wanted in text, text
        assert not [line for line in plan if line == "SCAN atlas_kv_entries"], text
        assert "TEMP B-TREE" not in text, text


async def test_the_batches_look_keys_up(filled: Any) -> None:
    if filled.dialect.name == "sqlite":
        import orjson

        one = {"tenant": "t1", "space": "n1", "names": orjson.dumps(["k1"]).decode()}
        for statement, parameters in (
            (kv_statements.GET_BATCH_OF_ONE, one),
            (kv_statements.GET_BATCH, {"wanted": '[["t1","n1","k1"]]'}),
            (kv_statements.GET_MANY, one),
        ):
            text = "\n".join(_explain(filled, statement, parameters))
            assert "sqlite_autoindex_atlas_kv_entries_1 (tenant_id=? AND namespace=? AND key=?)" in text, text
        return
    for statement in (kv_statements.GET_BATCH_OF_ONE, kv_statements.GET_BATCH, kv_statements.GET_MANY):
        sql = statement.compiled("postgresql").sql
        with filled.connect() as connection:
            cursor = connection.connection.cursor()
            cursor.execute("SET plan_cache_mode = force_generic_plan")
            cursor.execute("DEALLOCATE ALL")
            cursor.execute(f"PREPARE asked AS {sql}")
            arguments = {
                "GET_BATCH_OF_ONE": "ARRAY['k1','k2'], 't1', 'n1'",
                "GET_BATCH": "ARRAY['t1'], ARRAY['n1'], ARRAY['k1']",
                "GET_MANY": "'t1', 'n1', ARRAY['k1','k2']",
            }[next(n for n, v in vars(kv_statements).items() if v is statement)]
            cursor.execute(f"EXPLAIN EXECUTE asked ({arguments})")
            text = "\n".join(row[0] for row in cursor.fetchall())
        assert _KEY in text, text
        assert "Seq Scan on atlas_kv_entries" not in text, text
