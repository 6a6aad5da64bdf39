"""What the server tells, as frozen dataclasses.

A newer server may say more: fields that are not known here are passed over. Times are aware
datetimes in UTC, durations seconds, sides pixels, weights of files bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, TypedDict

from pydantic import BeforeValidator, ConfigDict
from pydantic.dataclasses import dataclass

__all__ = [
    "Event",
    "Fallback",
    "Input",
    "Job",
    "Model",
    "Models",
    "Page",
    "Parameters",
    "Problem",
    "Progress",
    "Result",
]

_LENIENT = ConfigDict(extra="ignore")
_ENDED = frozenset({"succeeded", "failed", "canceled", "expired"})


class Parameters(TypedDict, total=False):
    """What `POST /upscale` takes beside the image; what is left out, or None, is the default."""

    preset: str | None
    fidelity_weight: float | None
    scale: float | None
    steps: int | None
    sampler: str | None
    color_fix: str | None
    seed: int | None
    tile_overlap: int | None
    eta: float | None
    start: str | None
    prompt: str | None
    negative_prompt: str | None
    guidance_scale: float | None
    output_format: str | None
    webhook_url: str | None


@dataclass(frozen=True, config=_LENIENT)
class Problem:
    """Problem details (RFC 9457). `members` has them all, also those without a field here."""

    title: str
    detail: str = ""
    type: str = "about:blank"
    status: int | None = None
    retry_after: float | None = None
    """Seconds after which the server said to try again."""
    members: Mapping[str, Any] | None = None

    @classmethod
    def of(
        cls,
        members: Mapping[str, Any],
        *,
        title: str,
        status: int | None = None,
        retry_after: float | None = None,
    ) -> Problem:
        """The problem that a JSON object tells; `title` is for one that has none."""
        return cls(
            title=str(members.get("title") or title),
            detail=str(members.get("detail") or ""),
            type=str(members.get("type") or "about:blank"),
            status=status,
            retry_after=retry_after,
            members=members,
        )

    @property
    def slug(self) -> str:
        """The last part of the type, such as "queue-full"; empty for "about:blank"."""
        return self.type.rpartition("/")[2] if "/" in self.type else ""

    def __str__(self) -> str:
        """Title and detail, and the fields it names when there are several."""
        said = f"{self.title}: {self.detail}" if self.detail else self.title
        errors = (self.members or {}).get("errors")
        if not isinstance(errors, list) or (self.detail and len(errors) < 2):
            return said
        faults = [
            ": ".join(str(error[key]) for key in ("field", "detail") if error.get(key))
            for error in errors
            if isinstance(error, dict)
        ]
        return "\n".join([said, *(f"  {fault}" for fault in faults if fault)])


def _problem(value: Any) -> Any:
    if isinstance(value, Mapping):
        return Problem.of(value, title="The job failed")
    return value


@dataclass(frozen=True, config=_LENIENT)
class Progress:
    """How far a job is; `fraction` is 0 to 1, `eta_seconds` None while it is unknown."""

    stage: str
    step: int | None = None
    steps: int | None = None
    fraction: float = 0.0
    eta_seconds: float | None = None


@dataclass(frozen=True, config=_LENIENT)
class Input:
    """The image as the server found it."""

    width: int
    height: int
    format: str | None = None
    bytes: int | None = None
    filename: str | None = None


@dataclass(frozen=True, config=_LENIENT)
class Result:
    """The result's file; it is gone at `expires_at`."""

    width: int
    height: int
    bytes: int
    sha256: str | None = None
    media_type: str | None = None
    expires_at: datetime | None = None


@dataclass(frozen=True, config=_LENIENT)
class Job:
    """A job at one moment.

    `state` is queued, processing, succeeded, failed, canceled or expired; `queue_position` 1 is
    the next to start.
    """

    id: str
    state: str
    preset: str
    parameters: Mapping[str, Any] | None = None
    seed: int | None = None
    created_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    expires_at: datetime | None = None
    queue_position: int | None = None
    progress: Progress | None = None
    input: Input | None = None
    result: Result | None = None
    timings: Mapping[str, float | None] | None = None
    error: Annotated[Problem | None, BeforeValidator(_problem)] = None
    attempt: int | None = None
    cancel_requested: bool = False

    @property
    def ended(self) -> bool:
        """Whether there is nothing more to wait for."""
        return self.state in _ENDED

    @property
    def succeeded(self) -> bool:
        """Whether it ended with a result."""
        return self.state == "succeeded"


@dataclass(frozen=True, config=_LENIENT)
class Page:
    """Some of the jobs, and what to ask for the next ones with; None after the last."""

    jobs: tuple[Job, ...]
    next: str | None = None


@dataclass(frozen=True, config=_LENIENT)
class Event:
    """Something that happened to a job: `name` is "state", "progress" or "end", the last one.

    `id` is what to give as `last_event_id` to be told only what came later; None where the
    server has no events and was asked again and again instead.
    """

    name: str
    job: Job
    id: str | None = None


@dataclass(frozen=True, config=_LENIENT)
class Model:
    """A preset; `available` says whether a worker serves it now, `reason` why one does not."""

    name: str
    title: str = ""
    default: bool = False
    available: bool = False
    reason: str | None = None
    embedded: bool = False
    steps: int | None = None
    fidelity_weight: float | None = None
    native: int | None = None
    scale_max: float | None = None
    licence: str = ""
    licence_url: str = ""


@dataclass(frozen=True, config=_LENIENT)
class Fallback:
    """The preset that was to be the default, the one that is, and a clause that says why."""

    wanted: str
    served: str
    reason: str


@dataclass(frozen=True, config=_LENIENT)
class Models:
    """The presets, and what holds for all of them; limits in bytes and pixels."""

    models: tuple[Model, ...]
    fallback: Fallback | None = None
    formats: tuple[str, ...] = ()
    max_upload_bytes: int | None = None
    max_input_pixels: int | None = None
    max_output_pixels: int | None = None

    @property
    def default(self) -> Model | None:
        """The preset of a job that names none."""
        return next((model for model in self.models if model.default), None)
