"""A job as both sides see it: pydantic models, the same in Redis, in the worker and in HTTP.

Times are aware datetimes in UTC taken from the Redis server's clock, durations are seconds,
sizes are pixels after the EXIF orientation is applied, weights of files are bytes.
"""

from __future__ import annotations

import secrets
import uuid
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from .errors import Problem
from .presets import PRESETS, get_preset

__all__ = [
    "ACTIVE",
    "ANYONE",
    "ENDED",
    "PROMPT_MAX",
    "SEED_MAX",
    "Claim",
    "ColorFix",
    "ImageInfo",
    "Job",
    "JobState",
    "Origin",
    "OutputFormat",
    "Parameters",
    "Progress",
    "ResultInfo",
    "Sampler",
    "Stage",
    "Start",
    "Timings",
    "new_job_id",
]

Sampler = Literal["ddpm", "ddim", "dpmpp", "unipc"]
Start = Literal["lr", "noise"]
ColorFix = Literal["adain", "wavelet", "none"]
OutputFormat = Literal["png", "webp", "jpeg", "tiff"]
Stage = Literal["load", "encode", "denoise", "decode", "save"]

ANYONE = ""
"""The owner of what is asked without a key."""

# What torch.Generator.manual_seed takes and a JSON number keeps exactly in every client.
SEED_MAX = 2**32 - 1
# Characters; the text tower reads 75 tokens, of four characters each or so.
PROMPT_MAX = 1000


class JobState(StrEnum):
    QUEUED = "queued"
    PROCESSING = "processing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    EXPIRED = "expired"

    @property
    def ended(self) -> bool:
        return self in ENDED


ACTIVE = frozenset({JobState.QUEUED, JobState.PROCESSING})
ENDED = frozenset(JobState) - ACTIVE


@dataclass(frozen=True, slots=True)
class Origin:
    """Who submitted a job and in which request: what its record keeps besides what is to be done.

    owner is a key's id, or ANYONE; max_queued bounds the jobs that may wait of this owner, or of
    this client (an address) where there is none;
    request_id finds the request in the service's log; webhook_url is told of the job's end;
    claim is the idempotency key (of `jobs.idempotency`) under which the job is to be found again.
    """

    owner: str = ANYONE
    max_queued: int | None = None
    request_id: str | None = None
    webhook_url: str | None = None
    claim: Claim | None = None
    client: str = ""

    @property
    def counted(self) -> str:
        """Whose waiting jobs its job is counted among."""
        return self.owner or self.client


@dataclass(frozen=True, slots=True)
class Claim:
    """A Redis key that holds `held` and is set to `value` together with the job's record.

    Where it holds something else by then, there is no job either.
    """

    key: str
    held: str
    value: str
    ttl_s: int


def new_job_id() -> str:
    """A fresh id: 32 hexadecimal digits that nobody can guess and RQ accepts as its own."""
    return uuid.uuid4().hex


def _draw_seed() -> int:
    return secrets.randbelow(SEED_MAX + 1)


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Parameters(_Model):
    """What a client asks for, complete: whatever was left out is the preset's default.

    A seed is drawn when none is given, so that a job run again gives the same image. `None` means
    "left out" for every field, which lets a form pass on what it has.
    """

    preset: str = "tiny"
    fidelity_weight: Annotated[
        float, Field(ge=0, le=1, description="0: most detail; 1: closest to the input")
    ] = 0.5
    scale: Annotated[float, Field(ge=1, le=16, description="Result side / input side")] = 4.0
    steps: Annotated[int, Field(ge=1, le=1000, description="Denoising steps")] = 4
    sampler: Sampler = "ddpm"
    eta: Annotated[
        float | None, Field(ge=0, le=1, description="Noise of the sampler ddim; 1 when left out")
    ] = None
    start: Annotated[Start, Field(description="Begin at the noised input, or at noise alone")] = (
        "lr"
    )
    prompt: Annotated[
        str,
        Field(
            max_length=PROMPT_MAX,
            description="What the image shows; GET /models says which presets read it",
        ),
    ] = ""
    negative_prompt: Annotated[
        str, Field(max_length=PROMPT_MAX, description="What guidance leads away from")
    ] = ""
    guidance_scale: Annotated[
        float,
        Field(ge=1, le=20, description="1: none; above: closer to the prompt, at twice the work"),
    ] = 1.0
    color_fix: ColorFix = "adain"
    seed: Annotated[int, Field(ge=0, le=SEED_MAX)] = Field(default_factory=_draw_seed)
    tile_overlap: Annotated[
        int, Field(ge=0, le=56, multiple_of=8, description="Latent pixels shared by two tiles")
    ] = 32
    output_format: OutputFormat = "png"

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        given = {name: value for name, value in values.items() if value is not None}
        name = given.get("preset", "tiny")
        if isinstance(name, str) and (preset := PRESETS.get(name)):
            given.setdefault("steps", preset.steps)
            given.setdefault("fidelity_weight", preset.fidelity_weight)
        return given

    @field_validator("preset")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}; got {name!r}")
        return name

    @field_validator("prompt", "negative_prompt")
    @classmethod
    def _without_edges(cls, text: str) -> str:
        return text.strip()

    @model_validator(mode="after")
    def _within_preset(self) -> Parameters:
        preset = get_preset(self.preset)
        if self.scale > preset.scale_max:
            raise ValueError(
                f"scale must be at most {preset.scale_max:g} for {self.preset}; got {self.scale:g}"
            )
        if not preset.prompts and (self.prompt or self.negative_prompt):
            name = "prompt" if self.prompt else "negative_prompt"
            raise ValueError(
                f"{name} must be left out for {self.preset}, whose weights hold no text tower"
            )
        return self

    @model_validator(mode="after")
    def _have_an_effect(self) -> Parameters:
        """Refuses what the other choices would silently undo."""
        if self.eta is not None and self.sampler != "ddim":
            raise ValueError(
                f"eta must be left out for the sampler {self.sampler}; only ddim takes it"
            )
        if self.negative_prompt and self.guidance_scale == 1:
            raise ValueError("negative_prompt needs a guidance_scale above 1")
        if self.guidance_scale > 1 and not self.prompt and not self.negative_prompt:
            raise ValueError(
                "guidance_scale must be 1 without prompt and negative_prompt; "
                f"got {self.guidance_scale:g}"
            )
        return self


class Progress(_Model):
    """How far a running job is; step counts from 0 to steps within the denoise stage."""

    stage: Stage
    step: Annotated[int, Field(ge=0)] = 0
    steps: Annotated[int, Field(ge=0)] = 0
    fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    eta_seconds: Annotated[float, Field(ge=0)] | None = None


class ImageInfo(_Model):
    """The uploaded image as its header describes it.

    `mode` names the channels (L is grey, A opacity), `depth` the bits of each.
    """

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
    """A job's record at one moment. `revision` grows by one with every change of the record.

    `owner` is the key's id, empty for a job that was submitted without a key.
    """

    id: str
    state: JobState
    preset: str
    parameters: Parameters
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
