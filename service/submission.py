"""One way from an image to a job, whatever protocol it came by.

    async with Intake.open(request, limits) as (intake, kind):   # before the body is read
        form = ...                     # receive it: form_of_parts, or receive_json, in whose `pick`
                                       # open_image() makes a file of base64 (to be closed)
        job, is_replay = await intake.submit(form)

Everything is checked, then the image is stored and the job queued. Every refusal is raised as a
JobsError, which the application answers with a problem. Whatever goes wrong on the way, nothing of
the image stays behind; where Redis went away before it said whether it took the job, the sweep of
`jobs.maintenance` sees to that.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import re
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import PurePosixPath
from typing import IO, Self

import structlog
from anyio.to_thread import run_sync
from starlette.datastructures import Headers
from starlette.requests import Request

from jobs import tracing
from jobs.errors import JobNotFound, QueueUnavailable, StoreUnavailable
from jobs.formats import MEDIA_TYPES, examine
from jobs.image_file import Header, check_output
from jobs.schema import Claim, ImageInfo, Job, Origin, new_job_id
from jobs.settings import Settings
from jobs.store import input_key
from jobs.workers import Capacity
from models.geometry import output_size
from models.parameters import UpscaleParameters
from service.admission import Services, admit, services_of
from service.egress import BadTarget
from service.image_source import SPOOLED_BYTES, UPLOAD, fetch, read_upload
from service.problems import HTTPError, InvalidParameters
from service.readiness import Serving
from service.uploads import Form, check_head, parse
from service.waiting import while_connected

log = structlog.stdlib.get_logger(__name__)

MAX_NAME = 200
_KEY = re.compile(r"[\x21-\x7e]{1,255}")


@dataclass(frozen=True)
class Intake:
    """A request that may submit: its key and rate were checked."""

    request: Request
    services: Services
    origin: Origin
    key: str | None
    """The Idempotency-Key."""
    capacity: Capacity
    size: tuple[int, int] | None = None
    """Of the result, px, where that is said in place of a scale."""
    exact: bool = True
    """Whether the result has exactly that size, or else is at least as large."""

    @classmethod
    async def of(cls, request: Request, key: str | None = None) -> Self:
        """Admits a request, counted as an upload. `key` is what its protocol has in place of an
        Idempotency-Key.

        Raises AuthenticationError, HTTPError (a key of another scope, too many, or a malformed
        Idempotency-Key), QueueUnavailable.
        """
        services = services_of(request)
        caller, raw = await admit(
            request,
            upload=True,
            command=lambda caller: Capacity.command(caller.owner or caller.client),
        )
        own_limit = None if caller.key is None else caller.key.max_queued
        most = services.settings.max_queued_each if own_limit is None else own_limit
        request_id = request.state.request_id
        origin = Origin(
            caller.owner, most or None, request_id, client=caller.client, trace=tracing.carrier()
        )
        key = _idempotency_key(request.headers) if key is None else key
        return cls(request, services, origin, key, Capacity.of(raw))

    @classmethod
    @asynccontextmanager
    async def open(
        cls, request: Request, limits: Mapping[str, int], key: str | None = None
    ) -> AsyncIterator[tuple[Self, str]]:
        """What `of` gives, and the type of the body, which may be received: in the block, which is
        counted as a transfer. `limits` are its most bytes by type.

        Raises what `check_head` does too, QueueFull, QuotaExceeded or StoreUnavailable where no job
        has room now, and TooManyOpen.
        """
        intake = await cls.of(request, key)
        kind = check_head(request, limits)
        find, owner = intake.services.idempotency.job_id, intake.origin.owner
        # A request whose job was made needs no room.
        if intake.key is None or await run_sync(find, owner, intake.key) is None:
            intake._check_capacity()
        with intake.services.transfers.slot(intake.origin.client):
            yield intake, kind

    def _check_capacity(self) -> None:
        """Refuses when no queue that is served has room, or none for the key, or the image store
        gives no answer. Which preset is meant, the body says; so this can only tell when all of
        them are full."""
        services, capacity = self.services, self.capacity
        services.store.check()
        services.redis.check()
        services.queue.check_quota(self.origin, capacity.waiting)
        live = Serving(capacity.workers).live | {services.settings.preset}
        lengths = {preset: n for preset, n in capacity.lengths.items() if preset in live}
        preset = min(lengths, key=lengths.__getitem__)
        services.queue.check_room(preset, lengths[preset])

    async def submit(self, form: Form) -> tuple[Job, bool]:
        """The job of the image in an open file, and whether an earlier request made it. Or of the
        image at an https URL, fetched while the client stays: then the body must have been read.

        Raises InvalidParameters, ImageError, IdempotencyMismatch, IdempotencyPending, QueueFull,
        HTTPError for a preset that is not served, for a URL that is refused or fails, and what is
        away.
        """
        if isinstance(form.image, str):
            return await while_connected(self.request, partial(self._fetch, form, form.image))
        return await self._submit(form, form.image)

    async def _fetch(self, form: Form, url: str) -> tuple[Job, bool]:
        services, origin, key = self.services, self.origin, self.key
        # A repetition is the same by its URL; whether what is there changed is not asked.
        if key is not None and (job := await run_sync(self._replay, key, url, form.fields)):
            return job, True
        self._check_fields(form.fields, origin)
        with (
            services.fetches.slot(origin.client),
            tempfile.SpooledTemporaryFile(max_size=SPOOLED_BYTES) as file,
        ):
            limit = services.settings.max_upload_bytes
            filename = None
            if url.startswith(UPLOAD):
                await read_upload(services, url, origin.owner, file, limit, form.field)
            else:
                filename = await fetch(services.egress, url, file, limit, form.field)
            return await self._submit(replace(form, filename=filename), file, url)

    async def _submit(self, form: Form, file: IO[bytes], url: str = "") -> tuple[Job, bool]:
        return await self.services.store_threads.run(partial(self._make, form, file, url))

    def _make(self, form: Form, file: IO[bytes], url: str) -> tuple[Job, bool]:
        """The job, once all is checked, stored and queued. Blocking."""
        services, origin, fields = self.services, self.origin, form.fields
        if self.size is not None:
            fields = {**fields, "scale": repr(self._scale(file, *self.size))}
        job_id = new_job_id()
        with ExitStack() as undo:
            if self.key is not None:
                # What stands for the image: its digest, or the URL, which a repetition need not
                # fetch again.
                fingerprint = _fingerprint(url or _digest(file), fields)
                # First of all: a request whose job was made is not judged anew, by what is served
                # now.
                claim = self._take(self.key, fingerprint, job_id)
                if isinstance(claim, Job):
                    services.queue.check_replicas(claim.id)
                    return claim, True
                # Whatever stops it, the same request may be sent again.
                undo.callback(self._release, claim)
                origin = replace(origin, claim=claim)
            parameters, origin = self._check_fields(fields, origin)
            image, parameters = inspect(file, form.filename, parameters, services.settings)
            file.seek(0)
            services.queue.announce(job_id)
            try:
                services.store.put(input_key(job_id), file)
                job = services.queue.submit(job_id, parameters, image, origin)
            except QueueUnavailable as error:
                # The job may be queued and only the answer lost; it would find no image.
                log.warning(
                    "whether a job was queued is not known", job=job_id, detail=error.detail
                )
                raise
            # Whatever else stopped it, an image without a job must not stay.
            except BaseException:
                self._forget(job_id)
                raise
            undo.pop_all()
        log.info("submitted", job=job_id, preset=parameters.preset, bytes=image.bytes)
        return job, False

    def _check_fields(
        self, fields: Mapping[str, str], origin: Origin
    ) -> tuple[UpscaleParameters, Origin]:
        """The parameters, and the origin with what else the fields say."""
        services, form = self.services, parse(fields, self.services.settings.preset)
        if form.webhook_url:
            self._check_webhook(form.webhook_url)
            origin = replace(origin, webhook_url=form.webhook_url)
        origin = replace(origin, priority=form.priority, expires_in=form.expires_in)
        Serving(self.capacity.workers).check(form.preset)
        services.queue.check_room(form.preset, self.capacity.lengths[form.preset])
        # What the pixels depend on.
        values = {name: getattr(form, name) for name in UpscaleParameters.model_fields}
        return UpscaleParameters.model_construct(**values), origin

    def _check_webhook(self, url: str) -> None:
        """Checks the address to tell of the job's end, as far as that needs no DNS."""
        try:
            self.services.egress.target(url)
            if not self.origin.owner and self.services.settings.webhook_secret is None:
                raise BadTarget("needs an API key, whose secret signs what is sent")
        except BadTarget as error:
            raise InvalidParameters.of("webhook_url", str(error)) from error

    def _scale(self, file: IO[bytes], wide: int, high: int) -> float:
        """What gives the size asked for."""
        width, height = header_of(file, self.services.settings.max_input_pixels).upright
        scale = max(wide / width, high / height)
        result = output_size(width, height, scale)
        if self.exact and result != (wide, high):
            detail = f"must have the aspect of the image, {width} x {height}, which is not cut; "
            detail += f"got {wide} x {high}, where {result[0]} x {result[1]} would be right"
            raise InvalidParameters.of("size", detail)
        return scale

    def _replay(self, key: str, url: str, fields: Mapping[str, str]) -> Job | None:
        """The job that the same request for the image at a URL made before, if there is one."""
        services, owner = self.services, self.origin.owner
        try:
            if job_id := services.idempotency.find(owner, key, _fingerprint(url, fields)):
                job = services.queue.get(job_id, owner)
                services.queue.check_replicas(job.id)
                return job
        except JobNotFound:
            # Submitting frees the key.
            pass
        return None

    def _take(self, key: str, fingerprint: str, job_id: str) -> Claim | Job:
        """The key for this request, or the job that it made before."""
        services, owner = self.services, self.origin.owner
        while True:
            claim = services.idempotency.take(owner, key, fingerprint, job_id)
            if isinstance(claim, Claim):
                return claim
            try:
                return services.queue.get(claim, owner)
            except JobNotFound:
                # The job's time is over sooner than the key's.
                services.idempotency.forget(owner, key)

    def _release(self, claim: Claim) -> None:
        try:
            self.services.idempotency.release(claim)
        except QueueUnavailable as error:
            # Redis lets go of it by itself, a minute later.
            log.warning("an idempotency key stays taken for a while", detail=error.detail)

    def _forget(self, job_id: str) -> None:
        key = input_key(job_id)
        try:
            self.services.store.delete(key)
        except StoreUnavailable as error:
            # The refusal itself is what the client must hear.
            log.error("an image without a job is left", key=key, detail=error.detail)


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
        raise InvalidParameters.of(field, detail) from error
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


def _digest(file: IO[bytes]) -> str:
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # a spooled file reads like any other


def _fingerprint(content: str, fields: Mapping[str, str]) -> str:
    """What makes a request the same: the image and the fields that are filled in."""
    fields = {name: value for name, value in sorted(fields.items()) if value.strip()}
    return hashlib.sha256(json.dumps([content, fields]).encode()).hexdigest()


def _idempotency_key(headers: Headers) -> str | None:
    """The `Idempotency-Key` of a request, or None without one; raises HTTPError."""
    keys = headers.getlist("idempotency-key")
    if not keys:
        return None
    if len(keys) > 1 or not _KEY.fullmatch(keys[0]):
        raise HTTPError(
            "malformed-header",
            "Idempotency-Key must be given once, as 1 to 255 visible ASCII characters, such as a "
            "UUID.",
        )
    return keys[0]
