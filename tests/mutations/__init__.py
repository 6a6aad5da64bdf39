"""Deliberate breaks, each of which a suite must notice: `python -m tests.mutations`."""
