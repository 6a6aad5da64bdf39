"""Receives a multipart form, or a JSON object in its place: counted while it streams, spooled to a
file, its fields checked.

From its first megabyte on the file is an unnamed temporary one (in TMPDIR), gone whatever happens
to this process. Unknown fields are refused, because a misspelt `fidelity_weigth` would silently do
nothing. An empty value counts as left out: so an HTML form sends an empty input.

An image in JSON is base64, a third more than its bytes. So the body waits in a temporary file too,
is read once, and only a few bodies at a time are in memory.
"""

from __future__ import annotations

import json
import math
import mmap
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import IO, Any, TypeVar

import anyio
from anyio.to_thread import run_sync
from pydantic import JsonValue, ValidationError
from pydantic_core import ErrorDetails
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from service import image_source
from service.admission import services_of
from service.image_source import IMAGE_FIELD, URL_FIELD, no_room, open_image, too_large
from service.problems import HTTPError, InvalidParameters
from service.schema import FIELDS, FormFields

FORM, JSON = "multipart/form-data", "application/json"
# A parameter is a number or a word.
MAX_FIELD_BYTES = 16 * 1024
MAX_FIELDS = 64
# A connection that sends nothing for this long is given up, so that it cannot hold its place.
STALL_S = 30.0
# Of JSON, what is beside the image.
FIELDS_BYTES = 64 * 1024
_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "number": (int, float),
    "integer": (int, float),
}

T = TypeVar("T")


@dataclass(frozen=True)
class Form:
    """A form as received: the image's open file or its address, and the other fields; `field` is
    what its protocol calls the one with the image."""

    image: IO[bytes] | str
    fields: dict[str, str]
    filename: str | None = None
    field: str = IMAGE_FIELD


def check_head(request: Request, limits: Mapping[str, int]) -> str:
    """Refuses what URL and headers give away, before a byte of the body is read.

    `limits` are the most bytes by type of the body; its type is returned. Raises InvalidParameters
    for parameters in the URL, which would be ignored there; HTTPError for another type or coding;
    UploadTooLarge.
    """
    if names := list(dict.fromkeys(request.query_params)):
        raise InvalidParameters(
            [{"field": name, "detail": "belongs into the form"} for name in names],
            f"Parameters are fields of the form, not of the URL; {', '.join(names)} would be "
            "ignored there.",
        )
    field = request.headers.get("content-type", "")
    kind = field.partition(";")[0].strip().lower()
    if kind not in limits:
        problem = f"it is {field!r}" if field else "it is missing"
        raise HTTPError("not-multipart", f"Content-Type must be {' or '.join(limits)}; {problem}.")
    coding = request.headers.get("content-encoding", "identity")
    if coding.strip().lower() != "identity":
        raise HTTPError(
            "unsupported-encoding",
            f"Content-Encoding is {coding[:80]!r}; images are compressed already, send them as "
            "they are.",
            {"Accept-Encoding": "identity"},
        )
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limits[kind]:
        raise too_large(limits[kind])
    return kind


@asynccontextmanager
async def receive_parts(
    request: Request, limit: int, within_s: float, *, max_files: int = 1
) -> AsyncIterator[FormData]:
    """The parts of a body that has at most `limit` bytes; its files are gone afterwards.

    Raises:
        UploadTooLarge: the body is larger, whatever its headers say.
        HTTPError: nothing came for 30 seconds, or not all within `within_s`; or the body is not the
            multipart form it claims to be.
        StoreUnavailable: there is no room for temporary files.
    """
    parser = MultiPartParser(
        request.headers,
        pieces(request, limit, within_s),
        max_files=max_files,
        max_fields=MAX_FIELDS,
        max_part_size=MAX_FIELD_BYTES,
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise HTTPError(
            "malformed-form",
            f"The multipart form cannot be read: {error.message.rstrip('.')}. The image is a part "
            "with a filename, every other part is a short value.",
        ) from error
    except UnicodeError as error:
        raise HTTPError("malformed-form", f"The form's text cannot be decoded: {error}.") from error
    except OSError as error:
        raise no_room(error) from error
    try:
        yield form
    finally:
        # All of them: a form that breaks off without its last boundary has its last file here only.
        for file in parser._files_to_close_on_error:
            file.close()


async def pieces(request: Request, limit: int, within_s: float) -> AsyncGenerator[bytes, None]:
    """The body in pieces, until it grows past the limit, stops coming or comes too slowly."""
    count = 0
    deadline = anyio.current_time() + within_s
    stream = request.stream()
    while True:
        try:
            with anyio.fail_after(min(STALL_S, deadline - anyio.current_time())):
                piece = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            slow = anyio.current_time() >= deadline
            raise HTTPError(
                "upload-stalled",
                f"Only {count} bytes came within {within_s:g} seconds, the most that is waited."
                if slow
                else f"Nothing came for {STALL_S:g} seconds after {count} bytes; send it again.",
            ) from error
        count += len(piece)
        if count > limit:
            raise too_large(limit)
        yield piece


def form_of_parts(form: FormData) -> Form:
    """The one image and the other fields, each of which may come once; raises InvalidParameters."""
    names = [name for name, _ in form.multi_items()]
    errors: list[dict[str, JsonValue]] = [
        {"field": name, "detail": f"must be given once; it comes {names.count(name)} times"}
        for name in dict.fromkeys(names)
        if names.count(name) > 1
    ]
    fields = dict(form)
    image = fields.pop(IMAGE_FIELD, None)
    if isinstance(image, str):
        errors.append({"field": IMAGE_FIELD, "detail": "must be a file: a part with a filename"})
    texts = {name: value for name, value in fields.items() if isinstance(value, str)}
    for name in fields.keys() - texts.keys():
        errors.append({"field": name, "detail": f"is a file; only {IMAGE_FIELD} may be one"})
    url = texts.pop(URL_FIELD, "").strip() or None
    if url is not None and isinstance(image, UploadFile) and not (image.filename or image.size):
        # An HTML form sends its empty input for files.
        image = None
    errors += source_faults(image, url, "a file")
    if errors or isinstance(image, str):
        raise InvalidParameters(errors)
    if image is not None:
        return Form(image.file, texts, image.filename)
    # A field is short, and so is an image in it.
    return Form(open_image(str(url), MAX_FIELD_BYTES, URL_FIELD), texts, field=URL_FIELD)


def json_limit(max_upload_bytes: int) -> int:
    """The most bytes of a body whose image has at most so many."""
    return math.ceil(max_upload_bytes / 3) * 4 + FIELDS_BYTES


async def receive_json(
    request: Request, limit: int, within_s: float, pick: Callable[[dict[str, JsonValue]], T]
) -> T:
    """What `pick` makes of the object that is a request's body, of at most `limit` bytes.

    It is called in the thread that reads the body, and should keep no image's text: only so many
    are in memory. Raises UploadTooLarge; HTTPError for a body that stalls or is not one JSON object
    in UTF-8, in which each name comes once; StoreUnavailable without room for temporary files.
    """
    with tempfile.SpooledTemporaryFile(max_size=image_source.SPOOLED_BYTES) as file:
        await image_source.spool(pieces(request, limit, within_s), file)
        return await run_sync(lambda: pick(_read(file)), limiter=services_of(request).readers)


def _read(file: IO[bytes]) -> dict[str, JsonValue]:
    try:
        if file.seek(0, 2) == 0:
            raise ValueError("it has 0 bytes")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            text = str(data, "utf-8")
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_no_number)
    # UnicodeDecodeError and JSONDecodeError among them; and what is nested without an end.
    except (ValueError, RecursionError) as error:
        raise HTTPError("malformed-json", f"The body cannot be read as JSON: {error}.") from error
    if not isinstance(value, dict):
        raise HTTPError("malformed-json", "The body must be a JSON object with the form's fields.")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice[:80]!r} comes twice in an object")
    return values


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


def form_of(document: Mapping[str, Any], limit: int) -> Form:
    """The form that an object stands for, whose image has at most `limit` bytes, or is an open file
    already; null is as left out. Raises InvalidParameters for a wrong type, and as `open_image`
    does."""
    values = {name: value for name, value in document.items() if value is not None}
    image, url = values.pop(IMAGE_FIELD, None), values.pop(URL_FIELD, None)
    errors = source_faults(image, url, "base64")
    for name, source in ((IMAGE_FIELD, image), (URL_FIELD, url)):
        if source is not None and not (isinstance(source, str) or hasattr(source, "read")):
            errors.append({"field": name, "detail": "must be a string"})
    errors += [
        fault(name, json.dumps(value))
        for name, value in values.items()
        if name in FIELDS and not _fits(value, FIELDS[name])
    ]
    if errors:
        raise InvalidParameters(errors)
    source, field = (url, URL_FIELD) if image is None else (image, IMAGE_FIELD)
    fields = {name: _text(value) for name, value in values.items()}
    if isinstance(source, str):
        source = open_image(source, limit, field)
    return Form(source, fields, field=field)


def _fits(value: JsonValue, field: Mapping[str, Any]) -> bool:
    """Whether a value has the type of its field, or is one of its words: unlike in a form, an empty
    one is none."""
    # In Python true is a number.
    is_typed = isinstance(value, _TYPES[field["type"]]) and not isinstance(value, bool)
    return is_typed and value in field.get("enum", [value])


def _text(value: JsonValue) -> str:
    """As a form would say it: 4 for 4.0, which JSON does not distinguish."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, str) else json.dumps(value)


def source_faults(image: object, url: object, kind: str) -> list[dict[str, JsonValue]]:
    """What is wrong where not exactly one of the two fields says which image is meant."""
    if url is not None and image is not None:
        return [{"field": URL_FIELD, "detail": f"must be left out beside {IMAGE_FIELD}"}]
    if url is None and image is None:
        detail = f"is missing; it must be {kind}, or {URL_FIELD} an address"
        return [{"field": IMAGE_FIELD, "detail": detail}]
    return []


def parse(fields: Mapping[str, str], preset: str) -> FormFields:
    """The fields of a form, by default of `preset`; InvalidParameters lists every fault."""
    values = {name: value for name, value in fields.items() if value.strip()}
    try:
        return FormFields.model_validate({"preset": preset, **values})
    except ValidationError as error:
        faults = [_fault(details) for details in error.errors(include_url=False)]
    raise InvalidParameters(faults)


def _fault(details: ErrorDetails) -> dict[str, JsonValue]:
    """One of pydantic's findings as field, detail, and the range or the choice that is right."""
    name = str(details["loc"][0]) if details["loc"] else ""
    if details["type"] == "extra_forbidden":
        names = ", ".join([IMAGE_FIELD, URL_FIELD, *FIELDS])
        return {"field": name, "detail": f"is unknown; the fields are {names}"}
    if not name:
        # A finding about several fields says which in its own sentence.
        field, _, rest = details["msg"].removeprefix("Value error, ").partition(" ")
        return {"field": field, "detail": rest.rstrip(".")}
    value = details["input"]
    return fault(name, str(len(value) if details["type"] == "string_too_long" else value))


def fault(name: str, text: str) -> dict[str, JsonValue]:
    """The refusal of what a field got, with what it takes."""
    phrase, limits = _range_of(name)
    text = text if len(text) <= 80 else text[:77] + "..."
    return {"field": name, "detail": f"must be {phrase}; got {text}", **limits}


def _range_of(name: str) -> tuple[str, dict[str, JsonValue]]:
    """What a field takes, in words and as members of the problem."""
    field = FIELDS[name]
    if choices := field.get("enum"):
        return "one of " + ", ".join(choices), {"allowed": choices}
    if longest := field.get("maxLength"):
        return f"at most {longest} characters long", {"max_length": longest}
    low, high, unit = field["minimum"], field["maximum"], field.get("multipleOf")
    limits: dict[str, JsonValue] = {"minimum": low, "maximum": high}
    if unit is not None:
        return f"a multiple of {unit} between {low} and {high}", {**limits, "multiple_of": unit}
    kind = "a whole number " if field["type"] == "integer" else ""
    return f"{kind}between {low} and {high}", limits
