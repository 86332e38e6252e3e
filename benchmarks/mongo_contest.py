"""MongoDB protocol: this package beside hand-written PyMongo (asynchronous): same documents, same indexes, one server.

The server is `ATLAS_TEST_MONGO_URL`, else the one of the tests: `mongod`, or FerretDB behind the turnstile, which never uses
an index, so that its figures say nothing of how costs grow. The collections are small for that reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, AsyncIterator, Callable, Dict, Iterator

from benchmarks.contest import Contender, Plan, run_contest
from benchmarks.mongo_claims import OURS, RAW, measure_claims
from benchmarks.report import Report
from benchmarks.timing import Call
from modules.conversation_store.mongo_documents import CONVERSATIONS, MESSAGES
from modules.conversation_store.mongo_documents import FORMS as CONVERSATION_FORMS
from modules.storage.documents import NEVER, key_of
from modules.store_common.clock import to_microseconds, utc_now
from modules.store_common.ids import new_id
from modules.Tools.Base_Tools.kv_mongo_documents import ENTRIES
from modules.Tools.Base_Tools.kv_mongo_documents import FORMS as KV_FORMS

__all__ = ["run"]

GROUP = "MongoDB protocol"
_KEYS = 100
#: Most tasks at a time; each has a conversation of its own.
_TASKS = 16
_TEXT = "The quick brown fox jumps over the lazy dog and reads what the agent wrote before. " * 3
_VALUE = {"theme": "dark", "count": 3, "tags": ["a", "b"]}


@contextlib.contextmanager
def _server() -> Iterator[str]:
    given = os.environ.get("ATLAS_TEST_MONGO_URL")
    if given:
        yield given
        return
    from tests.support.mongo_server import temporary_server

    with temporary_server() as server:
        yield server.url


def run(report: Report, plan: Plan, directory: Path, say: Callable[[str], None]) -> None:
    """Measure and add the rows to `report`."""
    with _server() as url:
        asyncio.run(_run(report, plan, url, directory, say))


async def _run(report: Report, plan: Plan, url: str, directory: Path, say: Callable[[str], None]) -> None:
    contenders = [
        Contender(OURS, lambda: _ours(url, directory), "pymongo"),
        Contender(RAW, lambda: _by_hand(url), "pymongo"),
    ]
    results = await run_contest(
        report, plan, contenders, operations=("kv get", "kv set", "append"), tasks=(1, _TASKS), say=say
    )
    for operation in ("kv get", "kv set", "append"):
        for tasks in (1, _TASKS):
            label = f"{operation}, {tasks} task{'s' if tasks > 1 else ''}, to PyMongo by hand"
            report.compare(
                GROUP, label, results[OURS, operation, tasks], results[RAW, operation, tasks], target=0.8
            )
    claims = await measure_claims(report, plan, url, directory, [1, _TASKS], say)
    for tasks in (1, _TASKS):
        label = f"claim, {tasks} task{'s' if tasks > 1 else ''}, to PyMongo by hand"
        report.compare(GROUP, label, claims[OURS, tasks], claims[RAW, tasks], target=0.8)


@asynccontextmanager
async def _ours(url: str, directory: Path) -> AsyncIterator[Dict[str, Call]]:
    from modules.storage.manager import StorageManager

    settings = {
        "sql": {"path": str(directory / "ours.sqlite3")},
        "mongo": {"url": url, "database": "atlas_bench_ours"},
        "vectors": {"backend": "none"},
        "use_mongo_for_conversations": True,
        "kv": {"backend": "mongo"},
    }
    async with StorageManager(settings) as storage:
        kv, conversations = storage.kv, storage.conversations
        for number in range(_KEYS):
            await kv.set("n", f"k{number}", _VALUE)
        for number in range(_TASKS):
            await conversations.ensure_conversation(f"c{number}")

        async def get(task: int, call: int) -> Any:
            return await kv.get("n", f"k{(task * 7 + call) % _KEYS}")

        async def put(task: int, call: int) -> Any:
            return await kv.set("n", f"k{(task * 7 + call) % _KEYS}", _VALUE)

        async def append(task: int, call: int) -> Any:
            return await conversations.add_message(f"c{task}", "user", _TEXT)

        yield {"kv get": get, "kv set": put, "append": append}


@asynccontextmanager
async def _by_hand(url: str) -> AsyncIterator[Dict[str, Call]]:
    from pymongo import AsyncMongoClient

    client: Any = AsyncMongoClient(url, w="majority", tz_aware=True)
    database = client["atlas_bench_raw"]
    entries, heads, messages = database["entries"], database["conversations"], database["messages"]
    for index in (*KV_FORMS.indexes, *CONVERSATION_FORMS.indexes):
        place = {ENTRIES: entries, CONVERSATIONS: heads, MESSAGES: messages}.get(index.collection)
        if place is not None:
            await place.create_index(index.keys, unique=index.unique, sparse=index.sparse)
    calls = _hand_written(entries, heads, messages)
    try:
        # the same documents as ours has from the start: a server that scans takes longer for each of them
        for number in range(_KEYS):
            await calls["kv set"](0, number)
        for number in range(_TASKS):
            await heads.insert_one(_head(number))
        yield calls
    finally:
        await client.close()


def _head(number: int) -> Dict[str, Any]:
    """Return a conversation as ours keeps it."""
    now = to_microseconds(utc_now())
    return {
        "_id": key_of("t", f"c{number}"), "t": "t", "id": f"c{number}", "title": None, "status": "active", "user": None,
        "session": None, "m": "{}", "g": f"g{number}", "u": new_id(), "last": 0, "ep": 0, "trimmed": 0, "kept": 0, "v": 1,
        "ff": None, "fs": None, "lo": None, "lf": 0, "le": 0, "ca": now, "ua": now, "aa": None, "da": None,
    }  # fmt: skip


def _hand_written(entries: Any, heads: Any, messages: Any) -> Dict[str, Call]:
    import orjson

    words = sorted(set(_TEXT.lower().replace(".", "").split()))

    async def get(task: int, call: int) -> Any:
        found = await entries.find_one({"_id": key_of("t", "n", (task * 7 + call) % _KEYS)}, ["j", "b", "e"])
        return None if found is None else orjson.loads(found["j"])

    async def put(task: int, call: int) -> Any:
        now = to_microseconds(utc_now())
        key = (task * 7 + call) % _KEYS
        where = {"_id": key_of("t", "n", key), "e": {"$gt": now}}
        text = orjson.dumps(_VALUE).decode()
        new = {"j": text, "b": None, "z": len(text), "u": now, "e": NEVER, "r": call}
        first = {"t": "t", "s": "n", "k": f"k{key}", "c": now}
        change = {"$set": new, "$inc": {"v": 1}, "$setOnInsert": first}
        return await entries.find_one_and_update(where, change, upsert=True, return_document=True)

    async def append(task: int, call: int) -> Any:
        now = to_microseconds(utc_now())
        change = {"$inc": {"last": 1, "kept": 1}, "$set": {"ua": now, "status": "active"}}
        head = await heads.find_one_and_update(
            {"_id": key_of("t", f"c{task}"), "status": "active"}, change, return_document=True
        )
        number = head["last"]
        document = {
            "_id": key_of("t", f"g{task}", f"{number:012}"), "t": "t", "g": f"g{task}", "c": f"c{task}", "n": number,
            "i": new_id(), "role": "user", "name": None, "type": "message", "st": "complete",
            "j": orjson.dumps(_TEXT).decode(), "m": "{}", "mt": [], "au": None, "pa": None, "cl": None, "bd": None,
            "v": 1, "ca": now, "ea": None, "da": None, "ep": 0, "x": None, "w": words, "wl": len(words), "wt": new_id(),
        }  # fmt: skip
        await messages.insert_one(document)
        return document

    return {"kv get": get, "kv set": put, "append": append}
