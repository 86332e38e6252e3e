"""The tests. A regular package, so that `tests.support` can be imported from anywhere in it."""
