"""Search of messages by meaning: an embedder, any vector provider, and the outbox that keeps the two in step.

    index = SemanticIndex(executor, provider, make_embedder("hashing"))
    await index.register()                     # from now on every change of a message is noted, in its transaction
    await index.embed_pending()                # in the background, and by `atlas-storage embed`
    store = ConversationStore(executor, tenancy, semantic=index)

The vectors of each embedder are a collection of their own in each tenant (see `semantic_documents`). The backlog, a target of
the outbox, is that of an embedder in one vector store: after a change of either, nothing is searched that does not belong
together. It is claimed here and not by a lane of the relay: a batch may take minutes, nothing of it is ever parked, rows
leave the outbox when they are done, and messages that were there before the index are staged as the work goes on.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from modules.conversation_store import backlog
from modules.conversation_store.backlog import Key, MessageText
from modules.conversation_store.meaning import Nearest, Place
from modules.storage.embedders import configured_embedder
from modules.storage.embedders_base import EmbedderUnavailableError
from modules.storage.operations import Executor
from modules.storage.outbox_queue import (
    NEVER,
    OutboxEntry,
    claim,
    embedding_target,
    fail,
    finish_and_remove,
    release,
)
from modules.storage.semantic_documents import (
    SEPARATOR,
    EmbedResult,
    documents_of,
    filter_of,
    namespace_of_conversation,
    vector_id,
)
from modules.storage.semantic_registration import IndexRegistration
from modules.storage.vectors.base import VectorProvider
from modules.storage.vectors.errors import VectorNotFoundError
from modules.storage.vectors.models import SearchResults, VectorDocument
from modules.store_common.errors import StorageError
from modules.store_common.ids import new_id

if TYPE_CHECKING:
    from modules.storage.settings import StorageSettings

__all__ = ["EmbedResult", "SemanticIndex", "index_from_settings", "vector_id"]

logger = logging.getLogger(__name__)

#: Characters of a message that are embedded; models read less than this anyway.
_MAX_CHARACTERS = 16_000
_FILL_STEP = 1_000
_LOOK_EVERY_S = 2.0
_PAUSE_AFTER_FAILURE_S = 15.0
# A worker that dies leaves its rows to others after this; a batch that takes longer may be done twice, which is harmless.
_CLAIM_S = 300.0
# Pauses of a message that the embedder refuses: 10 seconds after the first time, twice that after each further one.
_FIRST_PAUSE_S = 10.0
_LONGEST_PAUSE_S = 3600.0
_WAITING = "some messages are not embedded yet"
_LOST = "the vectors of the messages are not in the vector store; they are made anew by `atlas-storage embed`"


def index_from_settings(
    settings: StorageSettings, executor: Executor, provider: VectorProvider
) -> SemanticIndex:
    """Return the index that `settings.embedder` means, which must be set; opens nothing."""
    return SemanticIndex(executor, provider, configured_embedder(settings))


class SemanticIndex(IndexRegistration):
    """Keeps the vectors of messages in a vector provider, and finds messages by them.

    Args:
        executor: Of the database that holds the messages.
        provider: An open vector provider; stays open.
        embedder: Makes the vectors.
        batch_size: Messages embedded at a time.
        collection_options: `index=` of the provider's `create_collection`.
    """

    # --- keeping in step ----------------------------------------------------------------------------------------

    async def embed_pending(
        self, limit: Optional[int] = None, progress: Optional[Callable[[EmbedResult], None]] = None
    ) -> EmbedResult:
        """Work the backlog off, until it is empty or `limit` messages were looked at; registers first if nobody did.

        Any number of processes may do it at the same time. What is interrupted is done again by the next call.

        Args:
            limit: About how many messages; None: all.
            progress: Called after each batch with the sums so far.

        Returns:
            What was done.

        Raises:
            EmbedderUnavailableError, VectorUnavailableError: try again later; nothing is lost.
        """
        if not self._is_registered:
            await self.register()
        known = await self.registration()
        result = EmbedResult()
        # before the first claim, so that what is in the backlog already is not embedded a second time
        await self._fill(known)
        while limit is None or result.total < limit:
            size = self._batch_size if limit is None else min(self._batch_size, limit - result.total)
            claimed = await self._executor.run(claim, embedding_target(known), new_id(), size, _CLAIM_S)
            if not claimed:
                if await self._fill(known):
                    continue
                break
            result += await self._batch(claimed)
            if progress is not None:
                progress(result)
        return result

    async def run(self) -> None:
        """Work the backlog off for ever, looking for new rows every two seconds; ended by cancelling its task."""
        while True:
            try:
                await self.embed_pending()
            except StorageError as exc:
                # the next round tries again; searches say meanwhile that they are not complete
                logger.warning("storage.embedding.failed", extra={"error_type": type(exc).__name__})
                await asyncio.sleep(_PAUSE_AFTER_FAILURE_S)
            except Exception:
                logger.exception("storage.embedding.defect")
                await asyncio.sleep(_PAUSE_AFTER_FAILURE_S)
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _fill(self, known: str) -> bool:
        if self._is_filled:
            return False
        went_on = await self._executor.run(backlog.fill, known, _FILL_STEP)
        self._is_filled = not went_on
        return went_on

    async def _batch(self, claimed: Sequence[OutboxEntry]) -> EmbedResult:
        entries = {Key.of(entry): entry for entry in claimed}
        try:
            vectors, refused = await self._bring_up(list(entries))
            if refused:
                failures = [(entries[key], reason) for key, reason in refused.items()]
                await self._executor.run(fail, failures, NEVER, _pause)
            done = [entry for key, entry in entries.items() if key not in refused]
            await self._executor.run(finish_and_remove, done)
        except BaseException:
            # free for the next call; what was written is written again
            await self._executor.run(release, claimed)
            raise
        return EmbedResult(len(vectors), len(done) - len(vectors), len(refused))

    async def _bring_up(self, keys: Sequence[Key]) -> Tuple[Dict[Key, Any], Dict[Key, str]]:
        """Bring the vectors of messages up to date; returns those made, and why the embedder refused others."""
        collection = await self.collection()
        for tenant_id in {key.tenant_id for key in keys}:
            # also where nothing is to be embedded, so that a collection that is not there was lost
            await self._ensure(collection, tenant_id)
        texts = [item for item in await self._executor.run(backlog.read_texts, keys) if item.words.strip()]
        vectors, refused = await self._vectors(texts)
        await self._write(collection, texts, vectors)
        # those that are gone, and those refused: an edited message must not be found by what it said before
        await self._remove(collection, [key for key in keys if key not in vectors])
        return vectors, refused

    async def _vectors(self, texts: Sequence[MessageText]) -> Tuple[Dict[Key, Any], Dict[Key, str]]:
        """Return vectors by message, and of the messages that the embedder refuses the reason."""
        words = [item.words[:_MAX_CHARACTERS] for item in texts]
        if not texts:
            return {}, {}
        try:
            return dict(zip([item.key for item in texts], await self._embed(words))), {}
        except EmbedderUnavailableError:
            raise
        except StorageError as exc:
            if len(texts) == 1:
                logger.warning("storage.embedding.refused", extra={"tenant_id": texts[0].key.tenant_id})
                return {}, {texts[0].key: f"{type(exc).__name__}: {exc}"}
        # one of them is to blame: the halves find out which
        middle = len(texts) // 2
        first, second = await self._vectors(texts[:middle]), await self._vectors(texts[middle:])
        return {**first[0], **second[0]}, {**first[1], **second[1]}

    async def _write(self, collection: str, texts: Sequence[MessageText], vectors: Mapping[Key, Any]) -> None:
        tenants: Dict[str, List[VectorDocument]] = {}
        for item in texts:
            if item.key in vectors:
                tenants.setdefault(item.key.tenant_id, []).extend(documents_of(item, vectors[item.key]))
        for tenant_id, documents in tenants.items():
            try:
                await self._provider.upsert(collection, documents, tenant_id=tenant_id)
            except VectorNotFoundError:
                # it was there a moment ago, and its other vectors are gone with it
                await self._refill()
                await self._ensure(collection, tenant_id)
                await self._provider.upsert(collection, documents, tenant_id=tenant_id)

    async def _remove(self, collection: str, keys: Sequence[Key]) -> None:
        places: Dict[Tuple[str, Optional[str]], List[str]] = {}
        for key in keys:
            named = vector_id(key.conversation_id, key.sequence)
            for namespace in (None, namespace_of_conversation(key.conversation_id)):
                places.setdefault((key.tenant_id, namespace), []).append(named)
        for (tenant_id, namespace), ids in places.items():
            try:
                await self._provider.delete(collection, ids, namespace=namespace, tenant_id=tenant_id)
            except VectorNotFoundError:
                continue  # nothing was embedded for this tenant yet

    # --- finding ------------------------------------------------------------------------------------------------

    async def nearest(
        self,
        query: str,
        *,
        tenant_id: str,
        limit: int,
        conversation_id: Optional[str] = None,
        roles: Optional[Sequence[str]] = None,
        created_after: Optional[datetime] = None,
        created_before: Optional[datetime] = None,
    ) -> Nearest:
        """Return the messages of a tenant that are nearest to `query` in meaning; see `meaning.SemanticIndex`."""
        collection = await self.collection()
        vector = (await self._embed([query[:_MAX_CHARACTERS]]))[0]
        known = await self.registration()
        is_waiting = await self._executor.run(backlog.is_pending, known, tenant_id, conversation_id)
        top_k = min(limit, self._provider.capabilities.max_top_k)
        namespace = None if conversation_id is None else namespace_of_conversation(conversation_id)
        try:
            found = await self._provider.search(
                collection,
                vector,
                top_k=top_k,
                namespace=namespace,
                filter=filter_of(roles, created_after, created_before),
                ids_only=True,
                tenant_id=tenant_id,
            )
        except VectorNotFoundError:
            found = await self._nothing(tenant_id, conversation_id)
        scores = await self._places(collection, tenant_id, namespace, found)
        reason = _WAITING if is_waiting else found.reason
        is_all = len(found) < top_k and found.complete
        return Nearest(scores, found.complete and not is_waiting, reason, is_all)

    async def _nothing(self, tenant_id: str, conversation_id: Optional[str]) -> SearchResults:
        """There is no collection: right for a tenant without messages, else its vectors were lost."""
        if not await self._executor.run(backlog.has_messages, tenant_id, conversation_id):
            return SearchResults()
        # the next round looks at the vector store, and embeds anew
        self._is_registered = False
        return SearchResults(complete=False, reason=_LOST)

    async def _places(
        self, collection: str, tenant_id: str, namespace: Optional[str], found: SearchResults
    ) -> Dict[Place, float]:
        scores: Dict[Place, float] = {}
        digests: Dict[str, float] = {}
        for hit in found:
            conversation_id, separator, sequence = hit.document.id.rpartition(SEPARATOR)
            if separator:
                scores[conversation_id, int(sequence)] = hit.score
            else:
                digests[hit.document.id] = hit.score
        if digests:
            ids = list(digests)
            for item in await self._provider.get(collection, ids, namespace=namespace, tenant_id=tenant_id):
                place = (item.metadata["conversation_id"], item.metadata["sequence"])
                scores[place] = digests[item.id]
        return scores


def _pause(failures: int) -> float:
    return min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(failures - 1, 20))
