"""One way from an image to a job, whatever protocol it came by.

    intake = await Intake.of(request)
    await intake.check_room()          # before the body is read
    async with AsyncExitStack() as held:
        held.enter_context(intake.slot())
        ...                            # receive the body: receive_form, or receive_json, in whose
                                       # `pick` open_image() makes a file of base64 (to be closed)
        if isinstance(image, str):     # an https URL: whom it makes wait is counted apart
            await held.aclose()
        job, is_replay = await intake.submit(image, texts, filename)

`texts` are the form's fields as `service.uploads.parse` takes them. Every refusal is raised as a
JobsError, which the application answers with a problem; nothing of a refused image stays.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import IO, Self

from anyio.to_thread import run_sync
from starlette.datastructures import Headers
from starlette.requests import Request

from jobs import tracing
from jobs.schema import Job, Origin
from jobs.workers import Capacity
from models.geometry import output_size
from service import direct_upload
from service.admission import Services, admit, services_of
from service.image_url import fetch
from service.problems import HTTPError, InvalidParameters
from service.spool import IMAGE_FIELD, SPOOLED_BYTES
from service.submission import check_capacity, check_fields, header_of, replay, submit
from service.uploads import Upload
from service.waiting import while_connected

_KEY = re.compile(r"[\x21-\x7e]{1,255}")


@dataclass(frozen=True)
class Intake:
    """A request that may submit: its key and rate were checked, and there is room for its job."""

    request: Request
    services: Services
    origin: Origin
    key: str | None
    """The Idempotency-Key."""
    capacity: Capacity

    @classmethod
    async def of(cls, request: Request, key: str | None = None) -> Self:
        """Admits a request, counted as an upload. `key` is what its protocol has in place of an
        Idempotency-Key.

        Raises AuthenticationError, ScopeError, HTTPError (too many, or a malformed key),
        QueueUnavailable.
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

    async def check_room(self) -> None:
        """Raises QueueFull, QuotaExceeded or StoreUnavailable where no job has room now; a request
        whose job was made needs none."""
        key, services = self.key, self.services
        find = services.idempotency.job_id
        if key is None or await run_sync(find, self.origin.owner, key) is None:
            check_capacity(services, self.origin, self.capacity)

    def slot(self) -> AbstractContextManager[None]:
        """Counts a transfer as long as the block runs; raises TooManyOpen."""
        return self.services.transfers.slot(self.origin.client)

    async def submit(
        self,
        image: IO[bytes] | str,
        texts: Mapping[str, str],
        filename: str | None = None,
        field: str = IMAGE_FIELD,
    ) -> tuple[Job, bool]:
        """The job of the image in an open file, and whether an earlier request made it. Or of the
        image at an https URL, fetched while the client stays: then the body must have been read.

        `field` is what the protocol calls the image, for the sentences about a URL. Raises
        InvalidParameters, ImageError, IdempotencyMismatch, IdempotencyPending, QueueFull, HTTPError
        for a URL that is refused or fails, and what is away.
        """
        if isinstance(image, str):
            return await while_connected(self.request, partial(self._fetch, image, texts, field))
        return await self._submit(Upload(image, filename, texts))

    async def _fetch(self, url: str, texts: Mapping[str, str], field: str) -> tuple[Job, bool]:
        services, origin, key = self.services, self.origin, self.key
        # A repetition is the same by its URL; whether what is there changed is not asked.
        if key is not None and (
            job := await run_sync(partial(replay, services, url, texts, origin, key))
        ):
            return job, True
        check_fields(services, texts, origin, self.capacity)
        with (
            services.fetches.slot(origin.client),
            tempfile.SpooledTemporaryFile(max_size=SPOOLED_BYTES) as file,
        ):
            limit = services.settings.max_upload_bytes
            filename = None
            if url.startswith(direct_upload.SCHEME):
                await direct_upload.read(services, url, origin.owner, file, limit, field)
            else:
                filename = await fetch(services.egress, url, file, limit, field)
            return await self._submit(Upload(file, filename, texts, url))

    async def _submit(self, upload: Upload) -> tuple[Job, bool]:
        call = partial(submit, self.services, upload, self.origin, self.key, self.capacity)
        return await self.services.store_threads.run(call)


@dataclass(frozen=True)
class SizedIntake(Intake):
    """Makes images of a size, px: of exactly that one, or else at least as large."""

    size: tuple[int, int]
    exact: bool = True

    async def _submit(self, upload: Upload) -> tuple[Job, bool]:
        fields = {**upload.fields, "scale": repr(await run_sync(self._scale, upload.file))}
        return await super()._submit(replace(upload, fields=fields))

    def _scale(self, file: IO[bytes]) -> float:
        width, height = header_of(file, self.services.settings.max_input_pixels).upright
        wide, high = self.size
        scale = max(wide / width, high / height)
        result = output_size(width, height, scale)
        if self.exact and result != self.size:
            detail = f"must have the aspect of the image, {width} x {height}, which is not cut; "
            detail += f"got {wide} x {high}, where {result[0]} x {result[1]} would be right"
            raise InvalidParameters([{"field": "size", "detail": detail}])
        return scale


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
