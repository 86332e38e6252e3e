"""The base tools: the key-value store (`kv_store`) and the vector store (`vector_store`)."""
