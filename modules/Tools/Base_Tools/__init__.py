"""The base tools: the key-value store (`kv_store`)."""
