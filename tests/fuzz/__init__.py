"""Requests that a machine makes up from the service's own description: `python -m tests.fuzz`."""
