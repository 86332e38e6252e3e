"""The conversation store. Import its parts from their rooms: `repository`, `records`, `errors`, `models`."""
