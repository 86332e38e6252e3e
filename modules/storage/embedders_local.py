"""Embedders that are code in this process: sentence-transformers, and any function or object of the application."""

from __future__ import annotations

import importlib
import inspect
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Optional, Sequence

from modules.storage.embedders_base import Embedder, EmbedderError, Matrix, checked_matrix
from modules.storage.opening import run_in_thread
from modules.store_common.errors import MissingDependencyError, StorageError

__all__ = ["FunctionEmbedder", "SentenceTransformersEmbedder", "load"]

_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*\Z")


class SentenceTransformersEmbedder:
    """A model of sentence-transformers, loaded at the first call and run on one thread of its own.

    Args:
        model: Its name on the hub, or a directory.
        batch_size: Texts that the model takes at once.
    """

    def __init__(self, model: str, *, batch_size: int = 32) -> None:
        self.name = f"sentence-transformers:{model}"
        self.dimension = 0
        self._model_name = model
        self._batch_size = batch_size
        self._model: Any = None
        self._thread: Optional[ThreadPoolExecutor] = None

    async def embed(self, texts: Sequence[str]) -> Matrix:
        """Return a vector for each text, of length 1."""
        import asyncio

        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="atlas-embedder")
        given = list(texts)
        matrix = await asyncio.get_running_loop().run_in_executor(self._thread, self._encode, given)
        self.dimension = matrix.shape[1]
        return matrix

    async def close(self) -> None:
        """End the thread and let the model go."""
        thread, self._thread = self._thread, None
        self._model = None
        if thread is not None:
            await run_in_thread(thread.shutdown)

    def _encode(self, texts: Sequence[str]) -> Matrix:
        if self._model is None:
            self._model = self._load()
        try:
            given = self._model.encode(
                texts,
                batch_size=self._batch_size,
                normalize_embeddings=True,
                convert_to_numpy=True,
                show_progress_bar=False,
            )
        except (RuntimeError, ValueError) as exc:
            raise EmbedderError(f"the embedder {self.name} failed: {type(exc).__name__}") from exc
        return checked_matrix(given, len(texts), self.dimension, self.name)

    def _load(self) -> Any:
        try:
            package = importlib.import_module("sentence_transformers")
        except ImportError as exc:
            raise MissingDependencyError("sentence-transformers", "embeddings") from exc
        try:
            return package.SentenceTransformer(self._model_name)
        except (OSError, ValueError) as exc:
            raise EmbedderError(
                f"the model of the embedder {self.name} could not be loaded: {type(exc).__name__}"
            ) from exc


class FunctionEmbedder:
    """A function of the application: takes a list of texts, gives their vectors; may be async.

    A plain function runs on a thread. Its attribute `dimension`, where it has one, is believed and checked.
    """

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name = name
        self.dimension = int(getattr(function, "dimension", 0))
        self._function = function

    async def embed(self, texts: Sequence[str]) -> Matrix:
        """Return a vector for each text."""
        given = list(texts)
        try:
            if inspect.iscoroutinefunction(self._function):
                result = await self._function(given)
            else:
                result = await run_in_thread(lambda: self._function(given))
                if inspect.isawaitable(result):
                    result = await result
        except StorageError:
            raise
        except Exception as exc:
            raise EmbedderError(f"the embedder {self.name} failed: {type(exc).__name__}") from exc
        matrix = checked_matrix(result, len(given), self.dimension, self.name)
        if len(given):
            self.dimension = matrix.shape[1]
        return matrix


def load(target: str) -> Embedder:
    """Return the embedder that "module:name" names: an `Embedder`, a class of one, or a function over texts.

    Raises:
        EmbedderError: there is nothing of that name, or it cannot be called.
    """
    if not _TARGET.match(target):
        raise EmbedderError(
            "an embedder is hashing, openai:MODEL, sentence-transformers:MODEL or module:callable"
        )
    module, _, path = target.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for name in path.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError) as exc:
        raise EmbedderError(f"the embedder {target} could not be imported: {exc}") from exc
    if inspect.isclass(found):
        found = found()
    if isinstance(found, Embedder):
        return found
    if not callable(found):
        raise EmbedderError(f"the embedder {target} is neither an Embedder nor a function")
    return FunctionEmbedder(target, found)
