"""A job as both sides see it: pydantic models, the same in Redis, in the worker and in HTTP.

Times are in UTC by the Redis server's clock, durations in seconds, sizes in pixels after the EXIF
orientation is applied.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from models.parameters import MIN_OVERLAP, UpscaleParameters

from .errors import Problem, RecordUnreadable

Stage = Literal["load", "encode", "denoise", "decode", "save"]
Priority = Literal["normal", "low"]

ANYONE = ""
"""The owner of what is asked without a key."""


class JobState(StrEnum):
    QUEUED = "queued"
    PROCESSING = "processing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    EXPIRED = "expired"

    @property
    def is_final(self) -> bool:
        return self in FINAL


FINAL = frozenset(JobState) - {JobState.QUEUED, JobState.PROCESSING}


@dataclass(frozen=True, slots=True)
class Origin:
    """Who submitted a job, a key's id or ANYONE, and in which request.

    `max_queued` bounds the waiting jobs of the owner, or without one those of the client (an
    address); `claim` is of `jobs.idempotency`. A job that has not ended after `expires_in` seconds
    fails; None is no such limit. `protocol` is another one than the service's own, by which it
    came: its name, and the address under which its client has the service. `trace` is the
    request's span, as `jobs.tracing.carrier` has it.
    """

    owner: str = ANYONE
    max_queued: int | None = None
    request_id: str | None = None
    webhook_url: str | None = None
    claim: Claim | None = None
    client: str = ""
    priority: Priority = "normal"
    expires_in: int | None = None
    protocol: str | None = None
    trace: Mapping[str, str] | None = None

    @property
    def quota_key(self) -> str:
        """Whose waiting jobs its job is counted among, and takes turns with those of others."""
        return self.owner or self.client


@dataclass(frozen=True, slots=True)
class Claim:
    """A Redis key that holds `lease` and is set to `value` together with the job's record; where it
    holds something else by then, there is no job either."""

    key: str
    lease: str
    value: str
    ttl_s: int


def new_job_id() -> str:
    """A fresh id: 32 random hexadecimal digits, which RQ accepts as its own."""
    return uuid.uuid4().hex


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Progress(_Model):
    """How far a running job is; step counts from 0 to steps within the denoise stage."""

    stage: Stage
    step: Annotated[int, Field(ge=0)] = 0
    steps: Annotated[int, Field(ge=0)] = 0
    fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    eta_seconds: Annotated[float, Field(ge=0)] | None = None


class ImageInfo(_Model):
    """The uploaded image's header; `mode` names the channels (L is grey, A opacity), `depth` the
    bits of each."""

    width: Annotated[int, Field(ge=1)]
    height: Annotated[int, Field(ge=1)]
    format: str
    media_type: str
    bytes: Annotated[int, Field(ge=0)]
    mode: str | None = None
    depth: int | None = None
    filename: str | None = None


class ResultInfo(_Model):
    """The result's file. `key` names it in the store; `expires_at` is set by the records."""

    width: Annotated[int, Field(ge=1)]
    height: Annotated[int, Field(ge=1)]
    bytes: Annotated[int, Field(ge=0)]
    sha256: str
    media_type: str
    key: str
    expires_at: datetime | None = None


class Timings(_Model):
    """Seconds spent. queue and total (from submission to the end) are set by the records."""

    queue: float = 0.0
    load: float = 0.0
    encode: float = 0.0
    denoise: float = 0.0
    decode: float = 0.0
    total: float = 0.0


class Job(_Model):
    """A job's record at one moment. `revision` grows by one with every change of it."""

    id: str
    state: JobState
    preset: str
    parameters: UpscaleParameters
    input: ImageInfo
    created_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    expires_at: datetime | None = None
    queue_position: int | None = None
    progress: Progress | None = None
    result: ResultInfo | None = None
    timings: Timings | None = None
    seed: int
    error: Problem | None = None
    attempt: int = 0
    worker: str | None = None
    cancel_requested: bool = False
    revision: int = 0
    owner: str = ""
    request_id: str | None = None
    webhook_url: str | None = None
    deadline: datetime | None = None
    protocol: str | None = None
    trace: dict[str, str] | None = None

    def is_due(self, now: datetime) -> bool:
        """Whether the time of its result is over, although its record does not say so yet."""
        over = self.expires_at is not None and self.expires_at <= now
        return over and self.state is JobState.SUCCEEDED


def new_record(
    parameters: UpscaleParameters,
    image: ImageInfo,
    origin: Origin,
    *,
    now: float,
    wait_s: int,
    keep_s: int,
) -> dict[str, str]:
    """The record of a job that is queued now, in Redis' seconds; `wait_s` bounds its time in the
    queue, `keep_s` that of the ended job and its images."""
    fields = {
        "parameters": parameters.model_dump_json(),
        "input": image.model_dump_json(),
        "created_at": f"{now:.6f}",
        "attempt": "0",
        "wait_s": str(wait_s),
        "keep_s": str(keep_s),
        "owner": origin.owner,
        "counted": origin.quota_key,
        "request_id": origin.request_id,
        "webhook_url": origin.webhook_url,
        "priority": origin.priority,
        "protocol": origin.protocol,
        "trace": json.dumps(dict(origin.trace)) if origin.trace else None,
        "deadline": None if origin.expires_in is None else f"{now + origin.expires_in:.6f}",
    }
    return {name: value for name, value in fields.items() if value is not None}


_JSON_FIELDS = frozenset({"parameters", "input", "progress", "result", "timings", "error", "trace"})


def job_of(job_id: str, fields: Mapping[str, str]) -> Job:
    """A record's fields as the model; raises RecordUnreadable, as for those of another version: a
    preset that is gone, parameters that came later."""
    try:
        values: dict[str, Any] = {
            name: json.loads(text) if name in _JSON_FIELDS else text
            for name, text in fields.items()
            if name in Job.model_fields
        }
        parameters = values["parameters"]
        preset, seed = parameters["preset"], parameters["seed"]
        # Version 0.1 took less.
        parameters["tile_overlap"] = max(MIN_OVERLAP, parameters["tile_overlap"])
        job = Job.model_validate({**values, "id": job_id, "preset": preset, "seed": seed})
        if job.ended_at is None:
            return job
        keep_s = int(fields.get("purged_after_s", fields["keep_s"]))
        expires_at = job.ended_at + timedelta(seconds=keep_s)
    # What is missing, and what is no number, no state or not valid for its model.
    except (KeyError, TypeError, ValueError) as error:
        raise RecordUnreadable(f"The record of job {job_id} cannot be read: {error}.") from error
    changes: dict[str, object] = {"expires_at": expires_at}
    if job.result and job.timings and job.started_at:
        queue, total = job.started_at - job.created_at, job.ended_at - job.created_at
        seconds = {"queue": queue.total_seconds(), "total": total.total_seconds()}
        changes["result"] = job.result.model_copy(update={"expires_at": expires_at})
        changes["timings"] = job.timings.model_copy(update=seconds)
    return job.model_copy(update=changes)
