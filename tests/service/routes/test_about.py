"""The page's files, as far as they can be checked without a browser (`make browser`). The page at
/docs: everything that is described; nothing that runs or is of another host."""

from __future__ import annotations

import mimetypes
import re
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest

from cli.folder import SUFFIXES
from jobs.settings import Settings
from service.app import create_app
from service.routes.about import FILES, reference
from tests.service.harness import serving


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


class Page(HTMLParser):
    """The tags of a page, and what its links and files lead to."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def values(self, name: str) -> set[str]:
        return {value for other, value in self.attributes if other == name}


@pytest.fixture
def described(client: httpx.Client) -> dict[str, Any]:
    answer: dict[str, Any] = client.get("/openapi.json").json()
    return answer


def test_every_operation_field_and_schema_is_there(
    client: httpx.Client, described: dict[str, Any]
) -> None:
    html = client.get("/docs").text
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            assert f"{method.upper()} {path}" in html
            for parameter in operation.get("parameters", ()):
                assert f"<code>{parameter['name']}</code>" in html
    form = described["paths"]["/upscale"]["post"]["requestBody"]["content"]["multipart/form-data"]
    for name in form["schema"]["properties"]:
        assert f"<code>{name}</code>" in html
    assert set(described["components"]["schemas"]) <= Page(html).values("id")


def test_nothing_in_it_runs_and_all_it_needs_is_of_this_server(settings: Settings) -> None:
    with serving(settings, root_path="/up") as client:
        answer = client.get("/docs")
        page = Page(answer.text)
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "script-src" not in policy
        assert "unsafe" not in policy + answer.text
        assert not page.tags & {"script", "iframe", "object", "embed", "form", "base", "style"}
        assert not [name for name, _ in page.attributes if name.startswith("on") or name == "style"]
        links = page.values("href") | page.values("src")
        for link in links:
            if link.startswith("#"):
                assert link[1:] in page.values("id")
            else:
                # Relative, so that a prefix that a proxy takes off stays.
                assert re.fullmatch(r"[a-z./]+", link)
                assert client.get(f"/docs/../{link}").status_code == 200


def test_what_a_description_holds_is_text() -> None:
    described = create_app(Settings()).openapi()
    evil = "<script>alert(1)</script>\" onload='x'"
    described["info"] |= {"title": evil, "description": evil}
    described["components"]["schemas"][evil] = {"description": evil, "properties": {evil: {}}}
    page = Page(reference(described))
    assert "script" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
