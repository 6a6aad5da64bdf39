"""What clients send and see: the form's fields; a job and its neighbours, as `jobs.schema` without
the result's key in the store, the worker's name and whose job it is."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from jobs.job_store import QUEUE_TTL_S
from jobs.schema import ImageInfo, Job, JobState, Priority, Progress, Timings
from models.layout import Layout
from models.parameters import UpscaleParameters
from models.presets import PRESETS
from service.egress import LONGEST_URL


class FormFields(UpscaleParameters):
    """All fields beside the image: the parameters, and those on which no pixel depends."""

    webhook_url: Annotated[str, StringConstraints(strip_whitespace=True)] = Field(
        "",
        max_length=LONGEST_URL,
        description="Told of the job's end with a POST (Standard Webhooks): https, and a host on "
        "the public internet. Needs an API key, whose `whsec_` secret signs it",
        json_schema_extra={"format": "webhook-url"},
    )
    priority: Priority = Field("normal", description="low: starts when no normal job waits")
    expires_in: int | None = Field(
        None, ge=1, le=QUEUE_TTL_S, description="Seconds after which the job fails if not ended"
    )


def _form_fields() -> dict[str, dict[str, Any]]:
    fields: dict[str, dict[str, Any]] = FormFields.model_json_schema()["properties"]
    fields["preset"]["enum"] = list(PRESETS)
    for name in ("steps", "fidelity_weight", "preset", "webhook_url"):
        # Their defaults are the preset's and the server's own, or none.
        fields[name].pop("default", None)
    for name in ("eta", "expires_in", "width", "height", "megapixels", "page", "quality"):
        # A form has no null: what is left out is not sent.
        fields[name] |= fields[name].pop("anyOf")[0]
        fields[name].pop("default")
    fields["seed"]["description"] = "Drawn when left out; the same seed gives the same image"
    fields["steps"]["description"] = "Denoising steps; the preset's number when left out"
    return fields


FIELDS = _form_fields()
"""The form's fields beside the image, by name, as JSON schemas."""


class ResultView(BaseModel):
    """The result's file: sides in pixels, weight in bytes, gone at `expires_at`."""

    url: str
    width: int
    height: int
    bytes: int
    sha256: str
    media_type: str
    expires_at: datetime | None = None


class CostView(BaseModel):
    """What the job takes, known from the start."""

    canvas_width: int = Field(description="Of the enlarged image that is computed, pixels")
    canvas_height: int
    tiles: int = Field(description="Through the network in each step; guidance doubles them")
    steps: int
    note: str | None = Field(description="Why the canvas has many times the result's pixels")

    @classmethod
    def of(cls, job: Job) -> CostView:
        layout = Layout.of((job.input.height, job.input.width), job.parameters)
        height, width = layout.canvas
        return cls(
            canvas_width=width,
            canvas_height=height,
            tiles=layout.tiles,
            steps=job.parameters.steps,
            note=layout.note,
        )


class Links(BaseModel):
    """Where to go from here, as paths on this server; null where it is not possible now."""

    self: str
    result: str | None = None
    cancel: str | None = Field(None, description="To be asked with DELETE")


class Parameters(UpscaleParameters):
    """What a client asks for, complete: whatever was left out is the preset's default.

    A seed is drawn when none is given, so that a job run again gives the same image. `None` means
    "left out" for every field, which lets a form pass on what it has.
    """


_ID = "5f0c2b7e9f3e4d0c8b1a6d2e4f7a9c31"
_JOB: dict[str, Any] = {
    "id": _ID,
    "state": "processing",
    "preset": "tiny",
    "parameters": Parameters(preset="tiny", steps=4, seed=42).model_dump(mode="json"),
    "created_at": "2026-01-02T03:04:05.678901Z",
    "started_at": "2026-01-02T03:04:06.012345Z",
    "ended_at": None,
    "expires_at": None,
    "queue_position": None,
    "progress": {"stage": "denoise", "step": 2, "steps": 4, "fraction": 0.5, "eta_seconds": 1.5},
    "input": {
        "width": 256,
        "height": 192,
        "format": "PNG",
        "media_type": "image/png",
        "bytes": 91827,
        "depth": 8,
        "mode": "RGB",
        "filename": "photo.png",
    },
    "cost": {
        "canvas_width": 1024,
        "canvas_height": 768,
        "tiles": 15,
        "steps": 4,
        "note": None,
    },
    "result": None,
    "timings": None,
    "seed": 42,
    "error": None,
    "attempt": 1,
    "cancel_requested": False,
    "links": {"self": f"/jobs/{_ID}", "result": None, "cancel": f"/jobs/{_ID}"},
}


class JobView(BaseModel):
    """A job at one moment; times are UTC, durations seconds, sides pixels."""

    model_config = ConfigDict(json_schema_extra={"example": _JOB})

    id: str
    state: JobState
    preset: str
    parameters: Parameters
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    expires_at: datetime | None = Field(description="When an ended job's result and images go")
    queue_position: int | None = Field(description="1 is the next to start; null unless queued")
    progress: Progress | None
    input: ImageInfo
    cost: CostView
    result: ResultView | None
    timings: Timings | None
    seed: int
    error: dict[str, Any] | None = Field(
        description="Why the job failed: problem details (type, title, detail and more)"
    )
    attempt: int = Field(description="How often a worker has started on it")
    cancel_requested: bool
    links: Links

    @classmethod
    def of(cls, job: Job, root: str) -> JobView:
        """The view of a job; `root` is the path under which the service is mounted."""
        links = Links(self=f"{root}/jobs/{job.id}")
        result = error = None
        if job.state is JobState.SUCCEEDED and job.result is not None:
            links.result = f"{links.self}/result"
            result = ResultView(url=links.result, **_fields(job.result, ResultView))
        if not job.state.is_final:
            links.cancel = links.self
        if job.error is not None:
            error = {**job.error.model_dump(), "type": f"{root}/problems/{job.error.type}"}
        parameters = Parameters.model_construct(**vars(job.parameters))
        fields = {"parameters": parameters, "result": result, "error": error, "links": links}
        return cls(**{**_fields(job, cls), **fields}, cost=CostView.of(job))


def _fields(model: BaseModel, view: type[BaseModel]) -> dict[str, Any]:
    """What the model and its view have in common, without copies."""
    values = vars(model)
    return {name: values[name] for name in view.model_fields if name in values}


class JobsView(BaseModel):
    """A page of jobs, newest first."""

    jobs: list[JobView]
    next: str | None = Field(description="The path of the next page; null on the last one")


class ComponentView(BaseModel):
    """One part that the service needs, and what is missing when it is not ready."""

    ready: bool
    detail: str


_READY: dict[str, Any] = {
    "status": "ready",
    "components": {
        "redis": {"ready": True, "detail": "answers"},
        "store": {"ready": True, "detail": "takes images"},
        "worker": {"ready": True, "detail": "1 serves tiny"},
    },
}


class ReadyView(BaseModel):
    """All parts are there: an upload now would be worked on."""

    model_config = ConfigDict(json_schema_extra={"example": _READY})

    status: str
    components: dict[str, ComponentView]


class ModelView(BaseModel):
    """A preset: its defaults, limits and licence, and whether a worker serves it now."""

    name: str
    title: str
    default: bool
    available: bool = Field(description="Whether a live worker serves it now")
    reason: str | None = Field(description="Why a worker that was to serve it does not")
    embedded: bool = Field(description="Whether the weights come with the package")
    prompts: bool = Field(description="Whether weights of this preset can read prompts")
    steps: int
    fidelity_weight: float
    native: int = Field(description="Side in pixels of the squares the network works on")
    min_canvas_side: int = Field(
        description="Smaller images are enlarged to so many pixels on the shorter side at least"
    )
    tile_size: int = Field(description="Side of these squares in latent pixels")
    scale_max: float
    licence: str
    licence_url: str


class ModelsView(BaseModel):
    """The presets and what holds for all of them; limits in bytes and pixels."""

    models: list[ModelView]
    formats: list[str] = Field(description="Formats that are taken, recognised by content")
    max_upload_bytes: int
    max_input_pixels: int
    max_output_pixels: int
    max_canvas_pixels: int = Field(description="Of the enlarged image that is computed")
    tile_overlap: int = Field(description="Of a job that names none, in latent pixels")
