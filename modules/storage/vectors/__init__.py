"""Vector stores: one provider interface over an embedded store, pgvector, Chroma and Pinecone."""
