"""Jobs: work that is done later, at least once, and never lost."""
