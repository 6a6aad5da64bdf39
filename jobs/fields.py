"""How a job lies in its Redis hash; times are seconds of the Redis server's clock."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from models.parameters import UpscaleParameters

from .connection import as_text
from .errors import Problem, RecordUnreadable
from .schema import (
    ANYONE,
    ImageInfo,
    Job,
    JobState,
    Origin,
    Progress,
    ResultInfo,
    Timings,
)

__all__ = ["fields_of_new", "job_of", "moment", "record_key", "text"]


def record_key(job_id: str) -> str:
    return f"stablesr:job:{job_id}"


def moment(time: Any) -> datetime:
    """What Redis' TIME answers, as a time in UTC."""
    seconds, micros = time
    return datetime.fromtimestamp(seconds + micros / 1e6, UTC)


def text(raw: Mapping[Any, Any]) -> dict[str, str]:
    """A hash as Redis answers it, in text."""
    return {as_text(name): as_text(value) for name, value in raw.items()}


def fields_of_new(
    parameters: UpscaleParameters,
    image: ImageInfo,
    origin: Origin,
    *,
    now: float,
    wait_s: int,
    keep_s: int,
) -> dict[str, str]:
    """The record of a job that is queued now."""
    fields = {
        "state": JobState.QUEUED.value,
        "parameters": parameters.model_dump_json(),
        "input": image.model_dump_json(),
        "created_at": f"{now:.6f}",
        "attempt": "0",
        "revision": "1",
        "wait_s": str(wait_s),
        "keep_s": str(keep_s),
        "owner": origin.owner,
        "counted": origin.counted,
    }
    if origin.request_id is not None:
        fields["request_id"] = origin.request_id
    if origin.webhook_url is not None:
        fields["webhook_url"] = origin.webhook_url
    return fields


def job_of(job_id: str, fields: Mapping[str, str]) -> Job:
    """A record's fields as the model that both sides know; raises RecordUnreadable.

    Fields may be those of another version: a preset that is gone, parameters that came later.
    """
    try:
        return _job_of(job_id, fields)
    # What is missing, and what is no number, no state or not valid for its model.
    except (KeyError, ValueError) as error:
        raise RecordUnreadable(f"The record of job {job_id} cannot be read: {error}.") from error


def _job_of(job_id: str, fields: Mapping[str, str]) -> Job:
    def at(name: str) -> datetime | None:
        return datetime.fromtimestamp(float(fields[name]), UTC) if name in fields else None

    parameters = UpscaleParameters.model_validate_json(fields["parameters"])
    created = datetime.fromtimestamp(float(fields["created_at"]), UTC)
    started, ended = at("started_at"), at("ended_at")
    expires = ended + timedelta(seconds=int(fields["keep_s"])) if ended else None
    result = timings = None
    if "result" in fields and started and ended:
        result = ResultInfo.model_validate_json(fields["result"])
        result = result.model_copy(update={"expires_at": expires})
        timings = Timings.model_validate_json(fields["timings"]).model_copy(
            update={
                "queue": (started - created).total_seconds(),
                "total": (ended - created).total_seconds(),
            }
        )
    return Job(
        id=job_id,
        state=JobState(fields["state"]),
        preset=parameters.preset,
        parameters=parameters,
        input=ImageInfo.model_validate_json(fields["input"]),
        created_at=created,
        started_at=started,
        ended_at=ended,
        expires_at=expires,
        progress=(
            Progress.model_validate_json(fields["progress"]) if "progress" in fields else None
        ),
        result=result,
        timings=timings,
        seed=parameters.seed,
        error=Problem.model_validate_json(fields["error"]) if "error" in fields else None,
        attempt=int(fields["attempt"]),
        worker=fields.get("worker"),
        cancel_requested=fields.get("cancel_requested") == "1",
        revision=int(fields["revision"]),
        owner=fields.get("owner", ANYONE),
        request_id=fields.get("request_id"),
        webhook_url=fields.get("webhook_url"),
    )
