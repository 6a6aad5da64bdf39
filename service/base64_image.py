"""Makes a file of an image that comes as text: in base64, plain or as a data URI."""

from __future__ import annotations

import binascii
import tempfile
from contextlib import ExitStack
from typing import IO

from service.problems import InvalidParameters
from service.spool import SPOOLED_BYTES, no_room, too_large

IMAGE_FIELD, URL_FIELD = "image", "image_url"
# Characters decoded at a time; a multiple of four.
PIECE = 256 * 1024


def open_image(text: str, limit: int, field: str) -> IO[bytes] | str:
    """An open file with the bytes of a text, or the text itself where it is an address. Blocking.

    `field` begins the sentences of refusals. Raises UploadTooLarge, before anything is decoded, for
    more than `limit` bytes; InvalidParameters for what is not strictly base64; StoreUnavailable
    without room for the file.
    """
    start = 0
    if text[:5].lower() == "data:":
        start = text.find(",", 0, 1000) + 1
        if not text[:start].lower().endswith(";base64,"):
            raise _fault(field, "must be base64 where it is a data URI: data:image/png;base64,...")
    elif ":" in text[:20] or field == URL_FIELD:
        return text
    size = (len(text) - start) // 4 * 3 - text.count("=", -2)
    if size > limit:
        raise too_large(limit, "image")
    with ExitStack() as undo:
        file = undo.enter_context(tempfile.SpooledTemporaryFile(max_size=SPOOLED_BYTES))
        try:
            for begin in range(start, len(text), PIECE):
                piece = text[begin : begin + PIECE]
                if begin + PIECE < len(text) and piece.endswith("="):
                    raise _fault(field, "must be base64 that ends with its last character")
                file.write(binascii.a2b_base64(piece, strict_mode=True))
        # Letters outside of ASCII among it.
        except ValueError as error:
            detail = f"must be base64, of A-Z a-z 0-9 + / and = only: {error}".rstrip(".")
            raise _fault(field, detail) from error
        except OSError as error:
            raise no_room(error) from error
        undo.pop_all()
    return file


def _fault(field: str, detail: str) -> InvalidParameters:
    return InvalidParameters([{"field": field, "detail": detail}])
