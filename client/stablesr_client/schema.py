"""What the service sends, as frozen pydantic models, and the parser of its events.

Fields that a newer server adds are ignored. Times are aware datetimes in UTC, durations seconds,
sides pixels, file sizes bytes.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, TypedDict

from pydantic import BaseModel, model_validator


class Parameters(TypedDict, total=False):
    """What `POST /upscale` takes beside the image; what is left out, or None, is the default."""

    preset: str | None
    fidelity_weight: float | None
    scale: float | None
    width: int | None
    height: int | None
    megapixels: float | None
    page: int | None
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
    alpha: str | None
    output_format: str | None
    quality: int | None
    metadata: str | None
    webhook_url: str | None
    priority: str | None
    expires_in: int | None


class Problem(BaseModel, frozen=True):
    """Problem details (RFC 9457). `members` has all of them, also those without a field here."""

    title: str = ""
    detail: str = ""
    type: str = "about:blank"
    status: int | None = None
    retry_after: float | None = None
    """Seconds after which the server said to try again."""
    members: Mapping[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _keep_members(cls, value: Any) -> Any:
        return {**value, "members": value} if isinstance(value, dict) else value

    @property
    def slug(self) -> str:
        """The last part of the type, such as "queue-full"; empty for "about:blank"."""
        return self.type.rpartition("/")[2] if "/" in self.type else ""

    def __str__(self) -> str:
        """Title and detail, and the wrong fields when there are several."""
        text = f"{self.title}: {self.detail}" if self.detail else self.title
        errors = self.members.get("errors")
        if not isinstance(errors, list) or (self.detail and len(errors) < 2):
            return text
        pairs = [(e.get("field"), e.get("detail")) for e in errors if isinstance(e, dict)]
        faults = (": ".join(str(part) for part in pair if part) for pair in pairs if any(pair))
        return "\n  ".join([text, *faults])


class Progress(BaseModel, frozen=True):
    """How far a job is; `fraction` is 0 to 1, `eta_seconds` None while it is unknown."""

    stage: str
    step: int | None = None
    steps: int | None = None
    fraction: float = 0.0
    eta_seconds: float | None = None


class Input(BaseModel, frozen=True):
    """The image as the server read it."""

    width: int
    height: int
    format: str | None = None
    bytes: int | None = None
    filename: str | None = None


class Cost(BaseModel, frozen=True):
    """What a job takes: pixels that are computed, tiles in each of the steps; `note` says why the
    pixels are many times those of the result."""

    canvas_width: int
    canvas_height: int
    tiles: int
    steps: int
    note: str | None = None


class Result(BaseModel, frozen=True):
    """The result's file; the server deletes it at `expires_at`."""

    width: int
    height: int
    bytes: int
    sha256: str | None = None
    media_type: str | None = None
    expires_at: datetime | None = None


class Job(BaseModel, frozen=True):
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
    cost: Cost | None = None
    result: Result | None = None
    timings: Mapping[str, float | None] | None = None
    error: Problem | None = None
    attempt: int | None = None
    cancel_requested: bool = False

    @property
    def ended(self) -> bool:
        """Whether its state is final."""
        return self.state in ("succeeded", "failed", "canceled", "expired")

    @property
    def succeeded(self) -> bool:
        """Whether it ended with a result."""
        return self.state == "succeeded"


class JobPage(BaseModel, frozen=True):
    """A page of the list of jobs, and the cursor of the next page; None on the last."""

    jobs: tuple[Job, ...]
    next: str | None = None


class Event(BaseModel, frozen=True):
    """A change of a job: `name` is "state", "progress" or "end", the last one.

    `id` is what to pass as `last_event_id` to receive only later events; None where the server
    has no events and was polled instead.
    """

    name: str
    job: Job
    id: str | None = None


class Model(BaseModel, frozen=True):
    """A preset; `available` is whether a worker serves it now, `reason` why none does."""

    name: str
    title: str = ""
    default: bool = False
    available: bool = False
    reason: str | None = None
    embedded: bool = False
    steps: int | None = None
    fidelity_weight: float | None = None
    native: int | None = None
    min_canvas_side: int | None = None
    tile_size: int | None = None
    scale_max: float | None = None
    licence: str = ""
    licence_url: str = ""


class Models(BaseModel, frozen=True):
    """The presets, and what holds for all of them; limits in bytes and pixels."""

    models: tuple[Model, ...]
    formats: tuple[str, ...] = ()
    max_upload_bytes: int | None = None
    max_input_pixels: int | None = None
    max_output_pixels: int | None = None
    max_canvas_pixels: int | None = None
    tile_overlap: int | None = None

    @property
    def default(self) -> Model | None:
        """The preset of a job that names none."""
        return next((model for model in self.models if model.default), None)


class EventParser:
    """Parses Server-Sent Events (HTML Living Standard, 9.2) from bytes, however they are cut.

    `last_id` and `retry_s`, the pause before a new connection, outlive a connection.
    """

    def __init__(self, last_id: str | None = None) -> None:
        self.last_id = last_id
        self.retry_s = 0.0
        self.connect()

    def connect(self) -> None:
        """A connection begins: drops the unfinished event of the last one."""
        decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
        # Not httpx's lines, which end at any of Unicode's separators.
        self._decoder = io.IncrementalNewlineDecoder(decoder, translate=True)
        self._line, self._id, self._name = "", self.last_id, ""
        self._data: list[str] = []

    def headers(self) -> dict[str, str]:
        """The headers of a request for the events after the last one."""
        resume = {} if self.last_id is None else {"Last-Event-ID": self.last_id}
        return {"Accept": "text/event-stream", **resume}

    def feed(self, chunk: bytes) -> Iterator[tuple[str, str]]:
        """Name and data of each event that these bytes complete; `last_id` is then its id."""
        *lines, self._line = (self._line + self._decoder.decode(chunk)).split("\n")
        for line in lines:
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if not line:
                # Only now: an event that is cut off has to be sent again.
                self.last_id = self._id
                if self._data:
                    yield self._name or "message", "\n".join(self._data)
                self._name, self._data = "", []
            elif name == "data":
                self._data.append(value)
            elif name == "event":
                self._name = value
            elif name == "id" and "\0" not in value:
                self._id = value
            elif name == "retry" and value.isascii() and value.isdigit():
                self.retry_s = int(value) / 1000
