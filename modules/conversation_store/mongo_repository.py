"""Every operation of the conversation store over documents: what `MongoPool.executor` is given for `ConversationStore`.

What has no form is refused: `messages_at` and the backlog, which serve search by meaning.
"""

from __future__ import annotations

from modules.conversation_store import (
    mongo_append,
    mongo_conversations,
    mongo_lifecycle,
    mongo_messages,
    mongo_search,
)
from modules.conversation_store.mongo_documents import FORMS, LANGUAGE

__all__ = [
    "CONVERSATION_FORMS",
    "SEARCH_LANGUAGE",
]

#: The forms, complete once the rooms above are imported.
CONVERSATION_FORMS = FORMS
#: The collection that holds the language of the search index.
SEARCH_LANGUAGE = LANGUAGE
_ROOMS = (mongo_append, mongo_conversations, mongo_lifecycle, mongo_messages, mongo_search)
