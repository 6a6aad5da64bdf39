"""The extras of AUTOMATIC1111's web UI and its descendants, /sdapi/v1: synchronous, base64."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, get_args

from anyio.to_thread import run_sync
from fastapi import Request, Response
from fastapi.responses import JSONResponse
from pydantic import JsonValue

import service.compat.protocol as protocol
from jobs.schema import Job, JobState
from models.parameters import MAX_SIDE, SamplerName
from models.presets import PRESETS
from service import waiting
from service.admission import Caller, ReaderDep, Services, services_of
from service.compat.protocol import Values, fault
from service.readiness import Serving
from service.submission import Intake

NAME = "a1111"
NEUTRAL: dict[str, JsonValue] = {
    **{"show_extras_results": True, "upscaler_2": "None", "extras_upscaler_2_visibility": 0},
    **{"gfpgan_visibility": 0, "codeformer_visibility": 0},
}
RESIZING = ("resize_mode", "upscaling_resize", "upscaling_resize_w", "upscaling_resize_h")
OTHERS = ("upscaling_crop", "upscaler_1", "codeformer_weight", "upscale_first")
FIELDS = (*NEUTRAL, *RESIZING, *OTHERS)


def shape(problem: dict[str, Any]) -> dict[str, Any]:
    """A problem as the web UI says it."""
    detail = problem["detail"]
    return {"error": problem["title"], "detail": detail, "body": "", "errors": detail}


router = protocol.router(NAME, shape, prefix="/sdapi/v1")
SINGLE = protocol.body("image", "upscaler_1", image={"type": "string"})
BATCH = protocol.body("imageList", "upscaler_1", imageList={"type": "array"})


async def _submit(intake: Intake, image: JsonValue, values: Values) -> Job:
    for name, value in values.items():
        if name not in FIELDS:
            raise fault(name, f"is unknown; known are image, {', '.join(FIELDS)}")
        if value != NEUTRAL.get(name, value):
            raise fault(name, f"must be {NEUTRAL[name]}; got {str(value)[:80]}")
    preset, mode = values.get("upscaler_1"), values.get("resize_mode", 0)
    if not isinstance(preset, str) or preset not in PRESETS:
        raise fault("upscaler_1", f"must be one of {', '.join(PRESETS)}; got {str(preset)[:80]}")
    source = {"image": image, "upscaling_resize": values.get("upscaling_resize", 2)}
    if mode == 1:
        del source["upscaling_resize"]
        size = _side(values, "upscaling_resize_w"), _side(values, "upscaling_resize_h")
        exact = values.get("upscaling_crop", True) is not False
        intake = replace(intake, size=size, exact=exact)
    elif mode != 0:
        raise fault("resize_mode", f"must be 0, a factor, or 1, a size; got {str(mode)[:80]}")
    ours: Values = {"preset": preset, "expires_in": waiting.patience(intake.services)}
    return await protocol.submit(intake, source, NAME, ours, {"upscaling_resize": "scale"})


def _side(values: Values, name: str) -> int:
    side = values.get(name, 512)
    if not isinstance(side, int) or not 1 <= side <= MAX_SIDE:
        raise fault(name, f"must be pixels, 1 to {MAX_SIDE}; got {str(side)[:80]}")
    return side


@router.post("/extra-single-image", openapi_extra=SINGLE)
async def extra_single_image(request: Request) -> Response:
    """`upscaler_1` is a preset, as `upscalers` has them."""
    return await _upscale(request, is_batch=False)


@router.post("/extra-batch-images", openapi_extra=BATCH)
async def extra_batch_images(request: Request) -> Response:
    """Each of `imageList` is a job, and counts as an upload; when one fails, all do."""
    return await _upscale(request, is_batch=True)


async def _upscale(request: Request, *, is_batch: bool) -> Response:
    jobs: list[Job] = []
    async with protocol.receive(request) as (intake, values):
        services = intake.services
        images = values.pop("imageList", None)
        if not is_batch:
            images = [{"data": values.pop("image", None)}]
        if not isinstance(images, list) or not images:
            raise fault("imageList", "must be a list of objects with data and name")
        try:
            for image in images:
                each = await Intake.of(request) if jobs else intake
                data = image.get("data") if isinstance(image, dict) else None
                jobs.append(await _submit(each, data, values))
        except BaseException:
            await waiting.cancel(services, *jobs)
            raise
    jobs = await waiting.ends_of(request, intake.origin.client, *jobs)
    marks = [protocol.mark(waiting.check_success(job).id) for job in jobs]
    content: dict[str, Any] = {"images": marks} if is_batch else {"image": marks[0]}
    content["html_info"] = f"<p>Seed: {', '.join(str(job.seed) for job in jobs)}</p>"
    return await protocol.inline(services, intake.origin.client, content, *jobs)


async def _jobs(services: Services, caller: Caller) -> list[Job]:
    """Those of the caller, by this protocol, that have not ended; the running ones first."""
    jobs: list[Job] = []
    for state in (JobState.PROCESSING, JobState.QUEUED):
        page = partial(services.queue.page, caller.owner, limit=100, state=state)
        jobs += (await run_sync(page)).jobs
    return [job for job in jobs if job.protocol == NAME]


@router.get("/progress")
async def progress(request: Request, caller: ReaderDep) -> Response:
    """Of the running job by this protocol; `job_count` is how many have not ended."""
    jobs = await _jobs(services_of(request), caller)
    now = jobs[0].progress if jobs else None
    state = {
        "interrupted": any(job.cancel_requested for job in jobs),
        **{"job": jobs[0].id if jobs else "", "job_count": len(jobs), "skipped": False},
        **{"sampling_step": now.step if now else 0, "sampling_steps": now.steps if now else 0},
    }
    eta_s = (now and now.eta_seconds) or 0.0
    content = {"progress": now.fraction if now else 0.0, "eta_relative": eta_s, "state": state}
    return JSONResponse({**content, "current_image": None, "textinfo": now and now.stage})


@router.post("/interrupt")
async def interrupt(request: Request, caller: ReaderDep) -> Response:
    """Cancels all of the asking key's jobs by this protocol."""
    services = services_of(request)
    await waiting.cancel(services, *await _jobs(services, caller))
    return JSONResponse({})


@router.get("/upscalers")
async def upscalers(request: Request, caller: ReaderDep) -> Response:
    """The presets that a worker serves, and the default one; their names go into `upscaler_1`."""
    services = services_of(request)
    serving = Serving((await run_sync(services.queue.capacity)).workers)
    names = [name for name in PRESETS if name in serving.live | {services.settings.preset}]
    rest = dict.fromkeys(("model_name", "model_path", "model_url"))
    return JSONResponse([{"name": name, **rest, "scale": 4} for name in names])


@router.get("/options")
async def get_options(request: Request, caller: ReaderDep) -> Response:
    """None can be changed."""
    return JSONResponse({"sd_model_checkpoint": services_of(request).settings.preset})


# What clients ask for when they connect.
FACTS: dict[str, Any] = {
    "sd-models": [{"title": name, "model_name": name, "filename": name} for name in PRESETS],
    "samplers": [{"name": name, "aliases": [], "options": {}} for name in get_args(SamplerName)],
    **{"cmd-flags": {}, "memory": {}, "scripts": {"txt2img": [], "img2img": []}},
}


async def _fact(content: Any, caller: ReaderDep) -> Response:
    return JSONResponse(content)


for _name, _content in FACTS.items():
    router.add_api_route(f"/{_name}", partial(_fact, _content), name=_name)
