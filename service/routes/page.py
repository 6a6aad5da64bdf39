"""GET / in a browser: the page, and the files it is made of."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from fastapi import APIRouter, HTTPException, Request, Response

from service.openapi import problems

__all__ = ["page", "router", "wants_page"]

router = APIRouter(tags=["page"])

FOLDER = Path(__file__).parents[1] / "page"
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Its own files and nothing else: no inline script, no other host, no frame around it. Pictures are
# shown from memory (blob:), because a request for them may need the key.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True)
class Asset:
    """One file of the page, read when the service starts."""

    content: bytes
    media_type: str
    etag: str

    @classmethod
    def read(cls, path: Path) -> Asset:
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()[:32]
        return cls(content, MEDIA_TYPES[path.suffix], f'"{digest}"')

    def answer(self, request: Request) -> Response:
        headers = {
            "ETag": self.etag,
            # Asked for again each time, and answered 304: a new version shows at once.
            "Cache-Control": "no-cache",
            "Content-Security-Policy": POLICY,
            "Referrer-Policy": "no-referrer",
            "Vary": "Accept",
        }
        if request.headers.get("If-None-Match") == self.etag:
            return Response(status_code=304, headers=headers)
        return Response(self.content, media_type=self.media_type, headers=headers)


ASSETS = MappingProxyType({path.name: Asset.read(path) for path in sorted(FOLDER.iterdir())})


def wants_page(request: Request) -> bool:
    """Whether a browser asks: everything else gets JSON."""
    return "text/html" in request.headers.get("Accept", "")


def page(request: Request) -> Response:
    """The page itself."""
    return ASSETS["index.html"].answer(request)


@router.get(
    "/page/{name}",
    summary="A file of the page",
    response_class=Response,
    responses={
        200: {"content": {media_type: {} for media_type in MEDIA_TYPES.values()}},
        304: {"description": "The file has not changed."},
        **problems(_404="The page has no such file."),
    },
)
async def asset(request: Request, name: str) -> Response:
    """The page's style, scripts and icon."""
    found = ASSETS.get(name)
    if found is None or name == "index.html":
        raise HTTPException(404)
    return found.answer(request)
