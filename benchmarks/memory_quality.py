"""`make bench-memory`: how well `conversations.search` finds the messages that answer a question, by each mode.

Data: 6 conversations of LoCoMo with 1,200 questions whose evidence is known (../shared/data; not part of the project).
The figure is the share of a question's evidence among the first 5, 10 and 20 hits within its conversation, averaged over
the questions. The vectors were made beforehand (MiniLM, 384 numbers, of "name: content" and of the question); the
answers and the evidence are never given to the store.

The weights of the hybrid ranking were chosen on half of the conversations; the table names the figures of that half and
of the other one apart. Since the other half was seen while they were chosen, the cross-validation of `memory_weights` is
printed as well: each conversation judged with weights that were chosen without it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, AsyncIterator, Dict, List, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray

from benchmarks import postgresql_contest
from benchmarks.memory_weights import Asked, cross_validate
from modules.conversation_store.meaning import MODES
from modules.conversation_store.repository import ConversationStore
from modules.conversation_store.search import rank
from modules.storage.embedders_hashing import HashingEmbedder
from modules.storage.manager import StorageManager
from modules.storage.semantic import SemanticIndex
from modules.storage.vectors.in_memory import InMemoryProvider
from modules.store_common.tenancy import TenantPolicy
from modules.store_common.text_query import question_terms

__all__ = ["Data", "StoredEmbedder", "main"]

DEPTHS = (5, 10, 20)
#: The databases with their own vector store, and the stores beside SQLite.
BACK_ENDS = ("sqlite", "postgresql", "in_memory", "chroma", "pinecone")
DEFAULT_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
#: The half on which the weights were chosen.
TRAINING = ("locomo-26", "locomo-42", "locomo-44")


class Data:
    """The conversations, the questions with evidence that exists, and the vectors.

    Args:
        directory: Where the three files are.
    """

    def __init__(self, directory: Path) -> None:
        self.conversations = _lines(directory / "locomo_conversations.jsonl")
        vectors = np.load(directory / "locomo_embeddings.npz")
        messages: NDArray[Any] = vectors["messages"]
        asked: NDArray[Any] = vectors["questions"]
        self.by_id = {
            str(name): row.astype(np.float32) for name, row in zip(vectors["message_ids"], messages)
        }
        known = {c["id"]: {m["id"] for m in c["messages"]} for c in self.conversations}
        questions = zip(_lines(directory / "locomo_questions.jsonl"), asked)
        self.questions = []
        self.by_text: Dict[str, NDArray[np.float32]] = {}
        for question, vector in questions:
            evidence = set(question["evidence"]) & known[question["conversation_id"]]
            if evidence:
                self.questions.append((question["conversation_id"], question["question"], evidence))
                self.by_text[question["question"]] = vector.astype(np.float32)
        for conversation in self.conversations:
            for message in conversation["messages"]:
                words = f"{message['name']}: {message['content']}"
                self.by_text[words] = self.by_id[f"{conversation['id']}/{message['id']}"]


class StoredEmbedder:
    """Gives the vectors that were made beforehand."""

    name = "minilm-stored"
    dimension = 384

    def __init__(self, data: Data) -> None:
        self._data = data

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return np.stack([self._data.by_text[text] for text in texts])


def _lines(path: Path) -> List[Dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def share(hits: Sequence[str], evidence: Any, depth: int) -> float:
    """Return the share of the evidence among the first `depth` hits."""
    return len(set(hits[:depth]) & evidence) / len(evidence)


def by_numpy(data: Data) -> Dict[str, Any]:
    """Return what the cosine finds when NumPy looks at every message: what `semantic` has to equal."""
    rows: List[Tuple[bool, List[float]]] = []
    spent: List[float] = []
    for conversation in data.conversations:
        named = conversation["id"]
        ids = [message["id"] for message in conversation["messages"]]
        matrix = np.stack([data.by_id[f"{named}/{item}"] for item in ids])
        matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
        for conversation_id, question, evidence in data.questions:
            if conversation_id == named:
                started = time.perf_counter()
                best = np.argsort(-(matrix @ data.by_text[question]), kind="stable")
                spent.append((time.perf_counter() - started) * 1000)
                found = [ids[place] for place in best[: max(DEPTHS)]]
                rows.append((named in TRAINING, [share(found, evidence, depth) for depth in DEPTHS]))
    return _figures("NumPy", "cosine", rows, spent)


def _figures(
    label: str, mode: str, rows: Sequence[Tuple[bool, List[float]]], spent: List[float]
) -> Dict[str, Any]:
    spent.sort()
    return {
        "back end": label,
        "mode": mode,
        **_recall("all", [row for _, row in rows]),
        **_recall("training", [row for is_training, row in rows if is_training]),
        **_recall("test", [row for is_training, row in rows if not is_training]),
        "p50_ms": statistics.median(spent),
        "p95_ms": spent[int(0.95 * (len(spent) - 1))],
    }


class Bench:
    """One database with the conversations in it, and its modes of search."""

    def __init__(self, label: str, manager: Any, provider: Any, data: Data, embedder: Any) -> None:
        self.label = label
        self._manager = manager
        self._data = data
        self.index = SemanticIndex(manager.executor, provider, embedder)
        self.store = ConversationStore(manager.executor, TenantPolicy(), semantic=self.index)

    async def fill(self) -> None:
        """Import the conversations and embed them."""
        await self.index.register()
        started = time.perf_counter()
        for conversation in self._data.conversations:
            await self.store.create_conversation(conversation["id"])
            for message in conversation["messages"]:
                await self.store.add_message(
                    conversation["id"],
                    message["role"],
                    message["content"],
                    name=message["name"],
                    message_id=message["id"],
                )
        middle = time.perf_counter()
        await self.index.embed_pending()
        print(
            f"{self.label}: {len(self._data.by_id)} messages appended in {middle - started:.1f} s,"
            f" embedded in {time.perf_counter() - middle:.1f} s",
            flush=True,
        )

    async def measure(self, mode: str) -> Dict[str, Any]:
        """Ask every question once."""
        rows: List[Tuple[bool, List[float]]] = []
        spent: List[float] = []
        for conversation_id, question, evidence in self._data.questions:
            started = time.perf_counter()
            hits = await self.store.search(
                question, mode=mode, conversation_id=conversation_id, limit=max(DEPTHS)
            )
            spent.append((time.perf_counter() - started) * 1000)
            found = [hit.message.id for hit in hits]
            rows.append((conversation_id in TRAINING, [share(found, evidence, depth) for depth in DEPTHS]))
        return _figures(self.label, mode, rows, spent)

    async def cross_validate(self) -> None:
        """Print what the hybrid finds in each conversation with weights chosen on the others."""
        ids = {c["id"]: [m["id"] for m in c["messages"]] for c in self._data.conversations}
        asked = []
        for conversation_id, question, evidence in self._data.questions:
            terms = question_terms(question, "english")
            params = {
                "tenant_id": "default", "after": None, "before": None, "limit": 1000, "language": "english",
                "conversation_id": conversation_id,
            }  # fmt: skip
            words = await self._manager.executor.run(rank, params, terms, None, False) if terms else {}
            nearest = await self.index.nearest(
                question, tenant_id="default", limit=1000, conversation_id=conversation_id
            )
            asked.append(Asked(conversation_id, evidence, ids[conversation_id], words, nearest.scores))
        found = cross_validate(asked)
        print(
            f"\n{self.label}: hybrid, weights chosen on the other five conversations, recall@10 on the one left out"
        )
        print("| left out | questions | before | after | meaning | on the others | on it |")
        print("|---|---|---|---|---|---|---|")
        for line in found.lines:
            print(line)
        print(f"all {len(asked)} questions: {found.recall:.3f}\n", flush=True)


def _recall(name: str, rows: Sequence[Sequence[float]]) -> Dict[str, float]:
    return {f"{name}@{depth}": statistics.fmean(row[n] for row in rows) for n, depth in enumerate(DEPTHS)}


def _print(figures: Sequence[Dict[str, Any]], data: Data) -> None:
    names = [c["id"] for c in data.conversations]
    print(f"\n{len(data.questions)} questions; training: {', '.join(TRAINING)};", end=" ")
    print(f"test: {', '.join(name for name in names if name not in TRAINING)}\n")
    columns = ["all@5", "all@10", "all@20", "training@10", "test@10", "p50_ms", "p95_ms"]
    print("| back end | mode | " + " | ".join(columns) + " |")
    print("|---|---|" + "---|" * len(columns))
    for row in figures:
        cells = [f"{row[name]:.1f}" if name.endswith("_ms") else f"{row[name]:.3f}" for name in columns]
        print(f"| {row['back end']} | {row['mode']} | " + " | ".join(cells) + " |")


@contextlib.asynccontextmanager
async def _store_beside(kind: str, directory: str) -> AsyncIterator[Any]:
    """Open a vector store that is not the database's own."""
    async with contextlib.AsyncExitStack() as stack:
        provider: Any
        if kind == "chroma":
            from modules.storage.vectors.chroma import ChromaProvider

            provider = ChromaProvider(persist_directory=f"{directory}/chroma")
        elif kind == "pinecone":
            from modules.storage.vectors.pinecone import PineconeProvider
            from tests.emulators.pinecone import PineconeEmulator

            emulator = await stack.enter_async_context(PineconeEmulator())
            provider = PineconeProvider(api_key=emulator.api_key, host=emulator.host, dimension=384)
        else:
            provider = InMemoryProvider()
        await provider.initialize()
        stack.push_async_callback(provider.shutdown)
        yield provider


async def run(url: str, data: Data) -> List[Dict[str, Any]]:
    """Measure one database with its own vector store, with the stored vectors and with the hashing embedder."""
    figures = []
    async with StorageManager({"sql": {"url": url}}) as manager:
        provider: Any = manager.vectors
        await provider.initialize()
        on_sqlite = manager.executor.dialect == "sqlite"
        label = "SQLite + embedded" if on_sqlite else "PostgreSQL + pgvector"
        bench = Bench(label, manager, provider, data, StoredEmbedder(data))
        await bench.fill()
        figures += [await bench.measure(mode) for mode in MODES]
        await bench.cross_validate()
        hashing = Bench(f"{label}, hashing embedder", manager, provider, data, HashingEmbedder())
        await hashing.index.register()
        await hashing.index.embed_pending()
        figures += [await hashing.measure(mode) for mode in MODES if mode != "text"]
    return figures


async def run_beside(kind: str, data: Data) -> List[Dict[str, Any]]:
    """Measure another vector store over the messages in SQLite; their text is found as in `run`."""
    with tempfile.TemporaryDirectory() as directory:
        settings = {"sql": {"url": f"sqlite:///{directory}/memory.sqlite3"}}
        async with StorageManager(settings) as manager, _store_beside(kind, directory) as provider:
            bench = Bench(f"SQLite + {kind}", manager, provider, data, StoredEmbedder(data))
            await bench.fill()
            return [await bench.measure(mode) for mode in MODES if mode != "text"]


def _measure(kind: str, data: Data) -> List[Dict[str, Any]]:
    if kind == "sqlite":
        with tempfile.TemporaryDirectory() as directory:
            return asyncio.run(run(f"sqlite:///{directory}/memory.sqlite3", data))
    if kind == "postgresql":
        with postgresql_contest.server() as url:
            return asyncio.run(run(url, data))
    return asyncio.run(run_beside(kind, data))


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(
        description="Evidence recall of conversations.search, by mode and back end."
    )
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="directory of the LoCoMo files")
    parser.add_argument(
        "--only", action="append", choices=BACK_ENDS, help="this back end alone; may be given again"
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    arguments = parser.parse_args()
    data = Data(arguments.data)
    figures = [by_numpy(data)]
    for kind in arguments.only or BACK_ENDS:
        figures += _measure(kind, data)
    _print(figures, data)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
