"""One way from an image to a job, whatever protocol it came by.

    intake = await Intake.of(request)
    await intake.check_room()              # before the body is read
    with intake.slot():                    # while a body is received and its image is held
        ...                                # service.uploads.receive_form, .json_body.receive_json
        job, is_replay = await intake.submit(file, texts, filename)        # an open file
        job, is_replay = await intake.submit_text(text, texts)  # base64, data URI or https URL

`texts` are the form's fields as `service.uploads.parse` takes them. Every refusal is raised as a
JobsError, which the application answers with a problem; nothing of a refused image stays.
"""

from __future__ import annotations

import binascii
import re
import tempfile
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import IO, Self

import anyio
from anyio.to_thread import run_sync
from starlette.datastructures import Headers
from starlette.requests import Request

from jobs.errors import StoreUnavailable
from jobs.schema import Job, Origin
from jobs.workers import Capacity
from models.geometry import output_size
from service.admission import Services, admit, services_of
from service.problems import HTTPError, InvalidParameters
from service.submission import check_capacity, header_of, submit
from service.uploads import IMAGE_FIELD, Upload, too_large

# Characters of base64 decoded at a time; a multiple of four.
PIECE = 256 * 1024
SPOOLED_BYTES = 1024 * 1024
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
# Decoding keeps a processor busy: two at once leave some for the requests of others.
_decoders = anyio.CapacityLimiter(2)


@dataclass(frozen=True)
class Intake:
    """A request that may submit: its key and rate were checked, and there is room for its job."""

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
        origin = Origin(caller.owner, most or None, request_id, client=caller.client)
        key = _idempotency_key(request.headers) if key is None else key
        return cls(services, origin, key, Capacity.of(raw))

    async def check_room(self) -> None:
        """Raises QueueFull, QuotaExceeded or StoreUnavailable where no job has room now; a request
        whose job was made needs none."""
        key, services = self.key, self.services
        find = services.idempotency.find
        if key is None or await run_sync(find, self.origin.owner, key) is None:
            check_capacity(services, self.origin, self.capacity)

    def slot(self) -> AbstractContextManager[None]:
        """Counts a transfer as long as the block runs; raises TooManyOpen."""
        return self.services.transfers.slot(self.origin.client)

    async def submit(
        self, file: IO[bytes], texts: Mapping[str, str], filename: str | None = None
    ) -> tuple[Job, bool]:
        """The job of the image in an open file, and whether an earlier request made it.

        Raises InvalidParameters, ImageError, IdempotencyMismatch, IdempotencyPending, QueueFull,
        and what is away.
        """
        upload = Upload(file, filename, dict(texts))
        call = partial(submit, self.services, upload, self.origin, self.key, self.capacity)
        return await self.services.store_threads.run(call)

    async def submit_text(
        self, text: str, texts: Mapping[str, str], field: str = IMAGE_FIELD
    ) -> tuple[Job, bool]:
        """The same for an image in base64, plain or as a data URI, or at an https URL.

        `field` is what the protocol calls the image, for the sentences of refusals.
        """
        limit = self.services.settings.max_upload_bytes
        with tempfile.SpooledTemporaryFile(max_size=SPOOLED_BYTES) as file:
            call = partial(decode_base64, text, file, limit, field)
            await run_sync(call, limiter=_decoders)
            return await self.submit(file, texts)


@dataclass(frozen=True)
class SizedIntake(Intake):
    """Makes images of a size, px: of exactly that one, or else at least as large."""

    size: tuple[int, int]
    exact: bool = True

    async def submit(
        self, file: IO[bytes], texts: Mapping[str, str], filename: str | None = None
    ) -> tuple[Job, bool]:
        scale = await run_sync(self._scale, file)
        return await super().submit(file, {**texts, "scale": repr(scale)}, filename)

    def _scale(self, file: IO[bytes]) -> float:
        width, height = header_of(file, self.services.settings.max_input_pixels).upright
        wide, high = self.size
        scale = max(wide / width, high / height)
        result = output_size(width, height, scale)
        if self.exact and result != self.size:
            detail = f"must have the aspect of the image, {width} x {height}, which is not cut; "
            detail += f"got {wide} x {high}, where {result[0]} x {result[1]} would be right"
            raise _fault("size", detail)
        return scale


def decode_base64(text: str, file: IO[bytes], limit: int, field: str) -> None:
    """Writes the bytes of base64, plain or in a data URI, into the file. Blocking.

    Raises UploadTooLarge, before anything is decoded, for more than `limit` bytes;
    InvalidParameters for what is not strictly base64; StoreUnavailable without room for the file.
    """
    start = 0
    if text[:5].lower() == "data:":
        start = text.find(",", 0, 1000) + 1
        if not text[:start].lower().endswith(";base64,"):
            raise _fault(field, "must be base64 where it is a data URI: data:image/png;base64,...")
    if (len(text) - start) // 4 * 3 > limit + 2:
        raise too_large(limit, "image")
    try:
        for begin in range(start, len(text), PIECE):
            piece = text[begin : begin + PIECE]
            if begin + PIECE < len(text) and "=" in piece:
                raise _fault(field, "must be base64; it ends (=) before its last character")
            file.write(binascii.a2b_base64(piece, strict_mode=True))
    except ValueError as error:
        # Letters outside of ASCII too.
        detail = f"must be base64, of A-Z a-z 0-9 + / and = only: {error}".rstrip(".")
        raise _fault(field, detail) from error
    except OSError as error:
        reason = error.strerror or error
        raise StoreUnavailable(
            f"The image cannot be kept while it is checked: {reason}.", retry_after=30
        ) from error
    if file.tell() > limit:
        raise too_large(limit, "image")


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


def _fault(field: str, detail: str) -> InvalidParameters:
    return InvalidParameters([{"field": field, "detail": detail}])
