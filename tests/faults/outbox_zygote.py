"""Makes children that run one unit of work over two stores with a failpoint armed, and children that recover from it.

    python -m tests.faults.outbox_zygote PAIR        PAIR is JSON: {"sql": URL, "target": TARGET, ...}

TARGET is "second", "chroma", "pinecone" or "mongo".

Importing costs seconds, so it is done once here and each child is a fork. A line of JSON on standard input is one child:

    {"mode": "prepare" | "work" | "recover", "tenant": ..., "plan": [[failpoint, action, at], ...], "out": FILE, "log": FILE}

With "first" a child that works prepares the stores itself, before its failpoints are armed.

Its pid is printed when it begins, its wait status when it ends; what it found is in the file `out`. Actions are those of
`modules.store_common.failpoints` and: `cut` (every connection to PostgreSQL is ended by the server), `redeliver` (what is
claimed is handed out once more), `twice` (the same unit is begun again beside this one).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Dict, List, Optional

from sqlalchemy import text

from modules.storage.manager import StorageManager
from modules.storage.operations import Transaction, write
from modules.storage.outbox_queue import OutboxEntry
from modules.storage.statements import Statement
from modules.storage.unit_of_work import OutcomeUnknownError, RollbackError, UnitOfWork
from modules.storage.vectors.base import VectorDocument
from modules.store_common import failpoints
from modules.store_common.errors import StorageError
from modules.store_common.tenancy import current_tenant, tenant_context
from tests.support.leaks import wait_until

_REDELIVER = Statement(
    text(
        "UPDATE atlas_outbox SET state = 'pending', available_at = staged_at, fence = fence + 1, claimed_by = NULL"
    )
)
# A unit and what it staged are over within this, in seconds, or never; a busy machine needs more than the promised 5.
_PATIENCE_S = 20.0


@write
async def _redeliver(tx: Transaction) -> None:
    await tx.run(_REDELIVER)


def _cut(url: str) -> None:
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


class Lateness:
    """How much later than asked for this event loop woke up, in all: what a busy machine takes from this process."""

    _STEP_S = 0.01

    def __init__(self) -> None:
        self._late_s = 0.0
        self._task = asyncio.ensure_future(self._watch())

    async def _watch(self) -> None:
        while True:
            due = time.monotonic() + self._STEP_S
            await asyncio.sleep(self._STEP_S)
            self._late_s += max(0.0, time.monotonic() - due)

    def end(self) -> float:
        """Stop and return it, in seconds."""
        self._task.cancel()
        return self._late_s


class Pair:
    """Two stores: the SQL database, and the one that a relay keeps up to date."""

    def __init__(self, config: Dict[str, Any]) -> None:
        self.config = config
        self.second: Optional[StorageManager] = None
        self.compensated = 0

    @property
    def has_vectors(self) -> bool:
        return self.config["target"] in ("chroma", "pinecone")

    def manager(self) -> StorageManager:
        return StorageManager(
            {
                "sql": {"url": self.config["sql"], "auto_migrate": False},
                "vectors": {} if self.config["target"] != "chroma" else self.config["vectors"],
                **({"mongo": self.config["mongo"]} if self.config["target"] == "mongo" else {}),
                # a hang ends by this deadline; a remote store on a busy machine needs its time
                "outbox": {"apply_timeout_s": 4.0 if self.has_vectors else 1.0},
            }
        )

    async def attach(self, storage: StorageManager) -> None:
        """Make the target known."""
        target = self.config["target"]
        if target == "pinecone":
            storage.add_vector_store("pinecone", options=self.config["options"], default=True)
        if target == "second":
            self.second = StorageManager({"sql": {"url": self.config["second"], "auto_migrate": False}})
            await self.second.initialize()
            storage.register_target("second", self._copy(storage, self.second))

    def _copy(self, storage: StorageManager, second: StorageManager) -> Any:
        async def apply(entry: OutboxEntry) -> None:
            """Bring the other database to the state that the key has at home now."""
            value = await storage.kv.get("doc", entry.key, tenant_id=entry.tenant_id)
            if value is None:
                await second.kv.delete("doc", entry.key, tenant_id=entry.tenant_id)
            else:
                await second.kv.set("doc", entry.key, value, tenant_id=entry.tenant_id)

        return apply

    async def detach(self) -> None:
        if self.second is not None:
            await self.second.shutdown()

    async def put(self, uow: UnitOfWork, id_: str, value: str) -> None:
        if self.has_vectors:
            await uow.vectors.upsert("docs", [VectorDocument(id_, [1.0, 0.5], value, {"value": value})])
        elif self.config["target"] == "mongo":
            await uow.documents.put("docs", id_, {"value": value})
        else:
            await uow.kv.set("doc", id_, value)
            uow.stage("second", "doc", id_)

    async def delete(self, uow: UnitOfWork, id_: str) -> None:
        if self.has_vectors:
            await uow.vectors.delete("docs", [id_])
        elif self.config["target"] == "mongo":
            await uow.documents.delete("docs", id_)
        else:
            await uow.kv.delete("doc", id_)
            uow.stage("second", "doc", id_)

    async def in_target(self, storage: StorageManager) -> Dict[str, Any]:
        if self.has_vectors:
            found = await storage.vectors.get("docs", ["a", "b"])
            return {document.id: document.content for document in found}
        if self.config["target"] == "mongo":
            return await self._in_mongo(storage)
        assert self.second is not None
        values = {key: await self.second.kv.get("doc", key) for key in ("a", "b")}
        return {key: value for key, value in values.items() if value is not None}

    async def _in_mongo(self, storage: StorageManager) -> Dict[str, Any]:
        assert storage._mongo is not None
        tenant = current_tenant()
        assert tenant is not None
        read = storage._mongo.writer.get
        found = {key: await read(tenant, "docs", key) for key in ("a", "b")}
        return {key: body["value"] for key, body in found.items() if body is not None}

    # --- what children do -------------------------------------------------------------------------------------

    async def prepare(self, storage: StorageManager) -> Dict[str, Any]:
        await storage.conversations.create_conversation(f"c-{os.environ['CELL']}")
        if self.has_vectors:
            await storage.vectors.create_collection("docs", 2)
        async with storage.unit_of_work() as uow:
            await self.put(uow, "a", "old")
            await self.put(uow, "b", "old")
        await uow.applied(30)
        return await self.facts(storage)

    async def unit(self, storage: StorageManager, fails: bool = False) -> str:
        """Do the one unit of the cell; returns what its caller was told."""
        uow = storage.unit_of_work("the-unit", timeout=5.0, body={"cell": 1})
        try:
            async with uow:
                await uow.conversations.add_message(f"c-{os.environ['CELL']}", "user", "hello")
                await uow.kv.increment("n", "counter")
                await self.put(uow, "a", "new")
                await self.delete(uow, "b")
                uow.set_result("first")
                if fails:
                    uow.add_compensating_action(self._compensate)
                    raise LookupError("the caller changed its mind")
        except (LookupError, RollbackError):
            return "rolled_back"
        except OutcomeUnknownError:
            return "unknown"
        except StorageError:
            return uow.state.value
        assert uow.result == "first"
        return "committed"

    async def met(self, plan: List[Any]) -> None:
        """Return when the relay has met what is armed: the database shows its work before the relay knows of it."""
        with contextlib.suppress(AssertionError):  # then whoever reads the log says which it was
            await wait_until(lambda: all(failpoints.hits[name] for name, _, _ in plan), _PATIENCE_S / 4)

    async def _compensate(self) -> None:
        self.compensated += 1

    async def work(self, storage: StorageManager, fails: bool) -> Dict[str, Any]:
        told = await self.unit(storage, fails)
        converged = await self.converge(storage)
        return {"told": told, "converged": converged, "compensated": self.compensated}

    async def converge(self, storage: StorageManager) -> bool:
        end = time.monotonic() + _PATIENCE_S
        while time.monotonic() < end:
            with contextlib.suppress(StorageError):
                if (await storage.outbox.stats()).pending == 0:
                    return True
            await asyncio.sleep(0.01)
        return False

    async def recover(self, storage: StorageManager, started: float) -> Dict[str, Any]:
        lateness = Lateness()
        converged = await self.converge(storage)
        seconds = time.monotonic() - started
        found = {"converged": converged, "seconds": seconds, "late": lateness.end()}
        found["before"] = await self.facts(storage)
        found["resolved"] = (await storage.resolve("the-unit")).applied
        found["told"] = await self.unit(storage)
        found["reconverged"] = await self.converge(storage)
        found["after"] = await self.facts(storage)
        return found

    async def facts(self, storage: StorageManager) -> Dict[str, Any]:
        stats = await storage.outbox.stats()
        messages = await storage.conversations.load_recent_messages(f"c-{os.environ['CELL']}", 10)
        return {
            "messages": [message.content for message in messages],
            "counter": await storage.kv.get("n", "counter"),
            "target": await self.in_target(storage),
            "pending": stats.pending,
            "parked": stats.parked,
        }

    def arm(self, storage: StorageManager, plan: List[Any], tasks: List[Any]) -> None:
        for name, action, at in plan:
            chosen: Any = action
            if action == "cut":
                chosen = lambda: _cut(self.config["sql"])  # noqa: E731
            elif action == "redeliver":
                chosen = lambda: storage.executor.run(_redeliver)  # noqa: E731
            elif action == "twice":
                chosen = lambda: tasks.append(asyncio.ensure_future(self.unit(storage)))  # noqa: E731
            failpoints.arm(name, chosen, at)


async def _child(pair: Pair, order: Dict[str, Any]) -> Dict[str, Any]:
    storage = pair.manager()
    tasks: List[Any] = []
    first = bool(order.get("first"))
    if not first:
        pair.arm(storage, order["plan"], tasks)
    with tenant_context(order["tenant"]):
        async with storage:
            await pair.attach(storage)
            try:
                if order["mode"] == "prepare":
                    found = await pair.prepare(storage)
                elif order["mode"] == "work":
                    if first:
                        await pair.prepare(storage)
                        pair.arm(storage, order["plan"], tasks)
                    found = await pair.work(storage, bool(order.get("fails")))
                    await pair.met(order["plan"])
                else:
                    found = await pair.recover(storage, time.monotonic())
                for task in tasks:
                    await task
                if tasks:
                    await pair.converge(storage)
            finally:
                await pair.detach()
    return found


def main() -> None:
    config = json.loads(sys.argv[1])
    if config["target"] == "chroma":
        import chromadb  # noqa: F401 - once, for all children
    if config["target"] == "pinecone":
        import pinecone  # noqa: F401
    if config["target"] == "mongo":
        import pymongo  # noqa: F401
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.environ["CELL"] = order["tenant"]
                os.environ["ATLAS_TEST_FAILPOINTS"] = "on"
                os.environ["ATLAS_TEST_FAILPOINTS_LOG"] = order["log"]
                found = asyncio.run(_child(Pair(config), order))
                Path(order["out"]).write_text(json.dumps(found))
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        print(child, flush=True)
        print(os.waitpid(child, 0)[1], flush=True)


if __name__ == "__main__":
    main()
