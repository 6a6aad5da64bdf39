"""Many clients at once: `python -m tests.load`."""
