"""The closed list of what a worker may be asked to run.

RQ imports any dotted path that it finds in Redis; `jobs.rq_job` refuses whatever is not here.
"""

from __future__ import annotations

__all__ = ["CALLBACKS", "ON_FAILURE", "TASKS", "UPSCALE"]

UPSCALE = "worker.tasks.upscale"
ON_FAILURE = "jobs.callbacks.on_failure"

TASKS = frozenset({UPSCALE})
CALLBACKS = frozenset({ON_FAILURE})
