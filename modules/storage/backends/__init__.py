"""The rooms that know a driver: connections, threads and pools of SQLite, PostgreSQL and MongoDB."""
