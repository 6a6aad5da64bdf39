"""The page's files, as far as they can be checked without a browser (`make browser`)."""

from __future__ import annotations

import mimetypes
import re

import httpx

from cli.folder import SUFFIXES
from service.routes.about import FILES


def test_a_browser_gets_the_page_and_every_file_that_it_names(client: httpx.Client) -> None:
    page = client.get("/", headers={"Accept": "text/html"}).text
    paths = set(re.findall(r'"(page/[^"]+)"', page))
    assert {"page/app.js", "page/style.css"} <= paths
    for path in paths:
        assert client.get(path).status_code == 200


def test_the_page_offers_every_kind_of_file_that_is_read() -> None:
    kinds = re.findall(r'accept="([^"]+)"', FILES["index.html"].decode())[0].split(",")
    assert "image/*" in kinds
    for suffix in SUFFIXES:
        media_type = mimetypes.guess_type(f"in{suffix}")[0] or ""
        assert suffix in kinds or media_type.startswith("image/"), suffix


def test_the_scripts_ask_for_elements_that_the_page_has() -> None:
    ids = set(re.findall(r' id="([^"]+)"', FILES["index.html"].decode()))
    for name, content in FILES.items():
        if name.endswith(".js"):
            names = re.findall(r'(?:\$|getElementById)\("([^"]+)"\)', content.decode())
            assert set(names) <= ids, name
