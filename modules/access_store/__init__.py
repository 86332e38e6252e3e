"""Who may use the HTTP API and the dashboard: bearer tokens, kept as digests; see `repository.AccessStore`."""
