"""What a result's file is called where it is saved, from the service or from the store."""

from __future__ import annotations

import re
from pathlib import PurePath
from urllib.parse import quote

from .schema import Job


def file_fields(job: Job, media_type: str) -> dict[str, str]:
    """Content-Type, and Content-Disposition (RFC 6266) with the upload's name and the scale:
    photo.jpg at 4 becomes photo-4x.png."""
    stem = PurePath(job.input.filename or job.id).stem
    extension = media_type.rpartition("/")[2].replace("jpeg", "jpg")
    name = f"{stem}-{job.parameters.scale:g}x.{extension}"
    plain = re.sub(r'[^ -~]|["\\%]', "_", name)
    # What UTF-8 cannot say, a name from a broken form, must not end the answer.
    exact = quote(name.encode("utf-8", "replace"), safe="")
    disposition = f"inline; filename=\"{plain}\"; filename*=UTF-8''{exact}"
    return {"Content-Type": media_type, "Content-Disposition": disposition}
