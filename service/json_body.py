"""Receives a JSON object in place of a form: counted while it streams, spooled, then read once.

An image in it is base64, a third more than its bytes. So the body waits in a temporary file, as a
form's does, and only a few bodies at a time are in memory.
"""

from __future__ import annotations

import json
import math
import mmap
import tempfile
from collections.abc import Callable, Mapping
from typing import IO, Any, TypeVar

from anyio.to_thread import run_sync
from pydantic import JsonValue
from starlette.requests import Request

from service.admission import services_of
from service.image_source import IMAGE_FIELD, SPOOLED_BYTES, URL_FIELD, open_image, spool
from service.problems import HTTPError, InvalidParameters
from service.uploads import (
    FIELDS,
    Form,
    fault,
    pieces,
    source_faults,
)

T = TypeVar("T")
# What is beside the image.
FIELDS_BYTES = 64 * 1024
_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "number": (int, float),
    "integer": (int, float),
}


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
    with tempfile.SpooledTemporaryFile(max_size=SPOOLED_BYTES) as file:
        await spool(pieces(request, limit, within_s), file)
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
