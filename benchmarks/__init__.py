"""What the storage costs, measured beside hand-written drivers and peers in the same run: `python -m benchmarks`."""
