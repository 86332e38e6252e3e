"""From the text of a token to the token, remembered for two seconds: a revoked one stops working within that time."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Dict, Set, Tuple

from modules.access_store.errors import TokenRejectedError
from modules.access_store.records import AccessToken
from modules.access_store.tokens import TokenKey, key_of
from modules.store_common.errors import StorageError

if TYPE_CHECKING:
    from modules.storage.manager import StorageManager

__all__ = ["REMEMBERED_S", "Authenticator"]

logger = logging.getLogger(__name__)

#: How long a look-up is remembered, in seconds.
REMEMBERED_S = 2.0
_MOST_REMEMBERED = 10_000
_NOTE_EVERY_S = 60.0


class Authenticator:
    """Looks tokens up, and writes down that they are used."""

    def __init__(self, storage: StorageManager) -> None:
        self._storage = storage
        self._known: Dict[TokenKey, Tuple[AccessToken, float]] = {}
        self._noted: Dict[str, float] = {}
        self._tasks: Set[asyncio.Task[None]] = set()

    async def token_of(self, text: str) -> AccessToken:
        """Return the token whose text is `text`.

        Raises:
            TokenRejectedError: it is no token, expired or revoked.
        """
        return await self.token_at(key_of(text))

    async def token_at(self, key: TokenKey) -> AccessToken:
        """Return the token of `key`; errors as `token_of`."""
        now = time.monotonic()
        known = self._known.get(key)
        if known is not None and known[1] > now:
            return known[0]
        token = await self._storage.access.require_token(key)
        if len(self._known) >= _MOST_REMEMBERED:
            self._known.clear()
        self._known[key] = (token, now + REMEMBERED_S)
        self._note(token, now)
        return token

    async def still_holds(self, key: TokenKey) -> bool:
        """Return whether the token of `key` is still good: what a stream asks now and then."""
        try:
            await self.token_at(key)
        except TokenRejectedError:
            return False
        return True

    def forget(self) -> None:
        """Look every token up anew: one was revoked here."""
        self._known.clear()

    async def close(self) -> None:
        """Wait for what is being written."""
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    def _note(self, token: AccessToken, now: float) -> None:
        if self._noted.get(token.id, 0.0) > now:
            return
        if len(self._noted) >= _MOST_REMEMBERED:
            self._noted.clear()
        self._noted[token.id] = now + _NOTE_EVERY_S
        task = asyncio.create_task(self._write(token))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _write(self, token: AccessToken) -> None:
        try:
            await self._storage.access.note_use(token)
        except StorageError as exc:
            # a time for people is not worth an error to the caller
            logger.warning(
                "server.token.use_not_noted",
                extra={"tenant_id": token.tenant_id, "error_type": type(exc).__name__},
            )
