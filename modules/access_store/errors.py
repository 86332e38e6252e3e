"""The errors of the access store, under `StorageError`.

NotFoundError
  TokenNotFoundError      the tenant has no token of that id
PermissionDeniedError
  TokenRejectedError      the token given is not one of ours, expired, or revoked
"""

from __future__ import annotations

from modules.store_common.errors import NotFoundError, PermissionDeniedError

__all__ = ["TokenNotFoundError", "TokenRejectedError"]


class TokenNotFoundError(NotFoundError):
    """This tenant has no such token."""

    def __init__(self, token_id: str) -> None:
        super().__init__(token_id)
        self.token_id = token_id

    def __str__(self) -> str:
        return f"this tenant has no token {self.token_id!r}; `atlas-storage token list` shows those it has"


class TokenRejectedError(PermissionDeniedError):
    """The token is unknown, expired or revoked; which of these is told to nobody but the log."""

    def __init__(self, reason: str = "unknown") -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return "this token is not valid; make one with `atlas-storage token create`"
