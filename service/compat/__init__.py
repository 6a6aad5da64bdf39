"""What clients of other services speak, translated onto the one submission of `POST /upscale`.

Each protocol is a file with a `router`; STABLESR_COMPAT switches it on. Keys, limits, checks and
metrics are those of every other request, and a field that is not known is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fastapi import APIRouter

from jobs.schema import Job

from . import a1111, fal, openai, protocol, replicate

OUTPUTS = protocol.outputs
ROUTERS: Mapping[str, APIRouter] = {
    "replicate": replicate.router,
    "cog": replicate.cog,
    "a1111": a1111.router,
    "fal": fal.router,
    "openai": openai.router,
}
MESSAGES: Mapping[str, Callable[[Job, str, str], Any]] = {
    "replicate": replicate.prediction,
    "cog": replicate.cog_prediction,
}
"""What webhooks tell of a job; from it, the service's address, and the secret of its owner."""
