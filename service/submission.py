"""An upload becomes a job: everything is checked, then the image is stored and the job queued.

Blocking. Whatever goes wrong on the way, nothing of the upload stays behind; where Redis went away
before it said whether it took the job, the sweep of `jobs.maintenance` sees to that.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import PurePosixPath
from typing import IO

import structlog

from jobs.errors import JobNotFound, QueueUnavailable, StoreUnavailable
from jobs.formats import MEDIA_TYPES, examine
from jobs.image_file import Header, check_output
from jobs.schema import Claim, ImageInfo, Job, Origin, new_job_id
from jobs.settings import Settings
from jobs.store import input_key
from jobs.workers import Capacity
from models.parameters import UpscaleParameters
from service.admission import Services
from service.egress import BadTarget
from service.problems import HTTPError, InvalidParameters
from service.readiness import Serving
from service.uploads import Upload, parse

log = structlog.stdlib.get_logger(__name__)

MAX_NAME = 200


def check_capacity(services: Services, origin: Origin, capacity: Capacity) -> None:
    """Refuses before the body is read when no queue that is served has room, or none for the key,
    or the image store gives no answer.

    Which preset is meant, the body says; so this can only tell when all of them are full.
    """
    services.store.check()
    services.redis.check()
    services.queue.check_quota(origin, capacity.waiting)
    live = Serving(capacity.workers).live | {services.settings.preset}
    lengths = {preset: n for preset, n in capacity.lengths.items() if preset in live}
    preset = min(lengths, key=lengths.__getitem__)
    services.queue.check_room(preset, lengths[preset])


def inspect(
    file: IO[bytes], filename: str | None, parameters: UpscaleParameters, settings: Settings
) -> tuple[ImageInfo, UpscaleParameters]:
    """Describes an uploaded image, whose file is mapped, not read; sides as a viewer sees them.
    And the parameters with the scale that gives the size asked for.

    Raises HTTPError for an empty file, InvalidParameters for a size that cannot be, and ImageError
    with the limits as members: those of the settings, of the preset and of the result's format.
    """
    header = header_of(file, settings.max_input_pixels, parameters.page)
    width, height = header.upright
    try:
        parameters = parameters.for_image(width, height)
    except ValueError as error:
        field, _, detail = str(error).partition(" ")
        raise InvalidParameters([{"field": field, "detail": detail}]) from error
    check_output(width, height, parameters, settings.max_output_pixels)
    image = ImageInfo(
        width=width,
        height=height,
        format=header.format,
        media_type=MEDIA_TYPES.get(header.format, f"image/{header.format.lower()}"),
        bytes=file.seek(0, 2),
        mode=header.mode,
        depth=header.depth,
        filename=_safe_name(filename),
    )
    return image, parameters


def header_of(file: IO[bytes], max_pixels: int, page: int | None = None) -> Header:
    """The header of a file, or of its page. Raises HTTPError for an empty one, and ImageError."""
    if file.seek(0, 2) == 0:
        raise HTTPError("image-empty", "The file has 0 bytes; an image is needed.")
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return examine(data, max_pixels, page)


def _safe_name(filename: str | None) -> str | None:
    """The last part of a client's path, printable and not too long; None when nothing is left."""
    last = PurePosixPath((filename or "").replace("\\", "/")).name
    printable = "".join(letter for letter in last if letter.isprintable())
    return printable[-MAX_NAME:].strip(". ") or None


def submit(
    services: Services, upload: Upload, origin: Origin, key: str | None, capacity: Capacity
) -> tuple[Job, bool]:
    """The job, once all is checked, stored and queued; True for one that the same request made."""
    job_id = new_job_id()
    with ExitStack() as undo:
        if key is not None:
            fingerprint = _fingerprint(_content(upload), upload.fields)
            # First of all: a request whose job was made is not judged anew, by what is served now.
            claim = _take(services, origin, key, fingerprint, job_id)
            if isinstance(claim, Job):
                services.queue.check_replicas(claim.id)
                return claim, True
            # Whatever stops it, the same request may be sent again.
            undo.callback(_release, services, claim)
            origin = replace(origin, claim=claim)
        parameters, origin = check_fields(services, upload.fields, origin, capacity)
        file = upload.file
        image, parameters = inspect(file, upload.filename, parameters, services.settings)
        file.seek(0)
        services.queue.announce(job_id)
        try:
            services.store.put(input_key(job_id), file)
            job = services.queue.submit(job_id, parameters, image, origin)
        except QueueUnavailable as error:
            # The job may be queued and only the answer lost; it would find no image.
            log.warning("whether a job was queued is not known", job=job_id, detail=error.detail)
            raise
        # Whatever else stopped it, an image without a job must not stay.
        except BaseException:
            _forget(services, job_id)
            raise
        undo.pop_all()
    log.info("submitted", job=job_id, preset=parameters.preset, bytes=image.bytes)
    return job, False


def check_fields(
    services: Services, fields: Mapping[str, str], origin: Origin, capacity: Capacity
) -> tuple[UpscaleParameters, Origin]:
    """The parameters, and the origin with what else the fields say.

    Raises InvalidParameters, HTTPError for a preset that is not served, QueueFull.
    """
    form = parse(fields, services.settings.preset)
    if form.webhook_url:
        _check_webhook(services, form.webhook_url, origin)
        origin = replace(origin, webhook_url=form.webhook_url)
    origin = replace(origin, priority=form.priority, expires_in=form.expires_in)
    preset = form.preset
    Serving(capacity.workers).check(preset)
    services.queue.check_room(preset, capacity.lengths[preset])
    return form.parameters, origin


def replay(
    services: Services, url: str, fields: Mapping[str, str], origin: Origin, key: str
) -> Job | None:
    """The job that the same request for the image at a URL made before, if there is one; raises
    IdempotencyMismatch, IdempotencyPending."""
    fingerprint = _fingerprint(url, fields)
    try:
        if job_id := services.idempotency.find(origin.owner, key, fingerprint):
            job = services.queue.get(job_id, origin.owner)
            services.queue.check_replicas(job.id)
            return job
    except JobNotFound:
        # Submitting frees the key.
        pass
    return None


def _check_webhook(services: Services, url: str, origin: Origin) -> None:
    """Checks the address to tell of the job's end, as far as that needs no DNS."""
    try:
        services.egress.target(url)
        if not origin.owner and services.settings.webhook_secret is None:
            raise BadTarget("needs an API key, whose secret signs what is sent")
    except BadTarget as error:
        raise InvalidParameters([{"field": "webhook_url", "detail": str(error)}]) from error


def _take(
    services: Services, origin: Origin, key: str, fingerprint: str, job_id: str
) -> Claim | Job:
    """The key for this request, or the job that it made before."""
    while True:
        claim = services.idempotency.take(origin.owner, key, fingerprint, job_id)
        if isinstance(claim, Claim):
            return claim
        try:
            return services.queue.get(claim, origin.owner)
        except JobNotFound:
            # The job's time is over sooner than the key's.
            services.idempotency.forget(origin.owner, key)


def _content(upload: Upload) -> str:
    """What stands for the image's bytes: their digest, or the URL, which a repetition need not
    fetch again."""
    if upload.url:
        return upload.url
    upload.file.seek(0)
    return hashlib.file_digest(upload.file, "sha256").hexdigest()  # type: ignore[arg-type]  # a spooled file reads like any other


def _fingerprint(content: str, fields: Mapping[str, str]) -> str:
    """What makes a request the same: the image and the fields that are filled in."""
    fields = {name: value for name, value in sorted(fields.items()) if value.strip()}
    return hashlib.sha256(json.dumps([content, fields]).encode()).hexdigest()


def _release(services: Services, claim: Claim) -> None:
    try:
        services.idempotency.release(claim)
    except QueueUnavailable as error:
        # Redis lets go of it by itself, a minute later.
        log.warning("an idempotency key stays taken for a while", detail=error.detail)


def _forget(services: Services, job_id: str) -> None:
    try:
        services.store.delete(input_key(job_id))
    except StoreUnavailable as error:
        # The refusal itself is what the client must hear.
        log.error("an image without a job is left", key=input_key(job_id), detail=error.detail)
