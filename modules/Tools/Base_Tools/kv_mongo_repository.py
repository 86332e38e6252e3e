"""Every operation of the key-value store over documents: what `MongoPool.executor` is given for `KeyValueStore`."""

from __future__ import annotations

from modules.Tools.Base_Tools import kv_mongo, kv_mongo_many
from modules.Tools.Base_Tools.kv_mongo_documents import FORMS

__all__ = [
    "KEY_VALUE_FORMS",
]

#: The forms, complete once the modules above are imported.
KEY_VALUE_FORMS = FORMS
_ROOMS = (kv_mongo, kv_mongo_many)
