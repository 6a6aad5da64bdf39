"""The whole service on every kind of Redis that people run: `python -m tests.redis_kinds`."""
