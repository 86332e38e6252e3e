"""The errors of the conversation store, all under `StorageError` of `modules.store_common.errors`.

    NotFoundError
      ConversationNotFoundError      no such conversation for this tenant (or it is deleted)
      MessageNotFoundError           no such message in this conversation (or it is deleted)
    StorageError
      ConversationArchivedError      an archived conversation takes no messages until `unarchive`
    AlreadyExistsError
      ConversationExistsError        `create_conversation` with an id that is taken
      MessageExistsError             `add_message` with an id that this conversation has already
    ConcurrencyError
      ConversationLeaseHeldError     another runner holds the conversation's lease
      ConversationLeaseLostError     the lease (or turn) given was taken over or released: write nothing more

`IdempotencyConflictError`, `ConcurrencyError` and `InvalidValueError` are raised as they are.
"""

from __future__ import annotations

from modules.store_common.errors import AlreadyExistsError, ConcurrencyError, NotFoundError, StorageError

__all__ = [
    "ConversationArchivedError",
    "ConversationExistsError",
    "ConversationLeaseHeldError",
    "ConversationLeaseLostError",
    "ConversationNotFoundError",
    "MessageExistsError",
    "MessageNotFoundError",
]


class ConversationNotFoundError(NotFoundError):
    """This tenant has no such conversation."""

    def __init__(self, conversation_id: str) -> None:
        super().__init__(conversation_id)
        self.conversation_id = conversation_id

    def __str__(self) -> str:
        return f"this tenant has no conversation {self.conversation_id!r}; create it first"


class MessageNotFoundError(NotFoundError):
    """The conversation has no such message."""

    def __init__(self, conversation_id: str, message_id: str) -> None:
        super().__init__(conversation_id, message_id)
        self.conversation_id = conversation_id
        self.message_id = message_id

    def __str__(self) -> str:
        return f"conversation {self.conversation_id!r} of this tenant has no message {self.message_id!r}"


class ConversationArchivedError(StorageError):
    """The conversation is archived."""

    def __init__(self, conversation_id: str) -> None:
        super().__init__(conversation_id)
        self.conversation_id = conversation_id

    def __str__(self) -> str:
        return f"conversation {self.conversation_id!r} is archived and takes no messages; unarchive it first"


class ConversationExistsError(AlreadyExistsError):
    """The conversation's id is taken."""

    def __init__(self, conversation_id: str) -> None:
        super().__init__(conversation_id)
        self.conversation_id = conversation_id

    def __str__(self) -> str:
        return f"conversation {self.conversation_id!r} exists already; use ensure_conversation() to take it as it is"


class MessageExistsError(AlreadyExistsError):
    """The message's id is taken in this conversation."""

    def __init__(self, conversation_id: str) -> None:
        super().__init__(conversation_id)
        self.conversation_id = conversation_id

    def __str__(self) -> str:
        return (
            f"conversation {self.conversation_id!r} already has a message with that id; give another id, none, or use "
            "client_message_id for calls that may be repeated"
        )


class ConversationLeaseHeldError(ConcurrencyError):
    """Another runner holds the lease; try again when it is released or runs out."""

    retryable = True

    def __init__(self, conversation_id: str) -> None:
        super().__init__(
            f"another runner holds the lease of conversation {conversation_id!r}; try again later"
        )
        self.args = (conversation_id,)
        self.conversation_id = conversation_id

    def __str__(self) -> str:
        return f"another runner holds the lease of conversation {self.conversation_id!r}; try again later"


class ConversationLeaseLostError(ConcurrencyError):
    """The lease was taken over or released; the write was refused."""

    def __init__(self, conversation_id: str) -> None:
        super().__init__(conversation_id)
        self.args = (conversation_id,)
        self.conversation_id = conversation_id

    def __str__(self) -> str:
        return f"the lease of conversation {self.conversation_id!r} was lost: another runner may be writing; stop this one"
