"""A server to talk to, and a folder of images to upscale."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from PIL import Image

from tests.cli.fake_service import FakeService
from tests.cli.folders import NAMES, StubModel
from tests.scripted_server import Script, serve


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """A command that runs in this process sets up its logging; the next test has none of it."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    structlog.reset_defaults()
    logging.captureWarnings(False)
    root.setLevel(level)
    root.handlers = handlers


@pytest.fixture
def script() -> Iterator[Script]:
    with serve() as script:
        yield script


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "in.png"
    Image.radial_gradient("L").resize((12, 9)).convert("RGB").save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three images, one in a sub-folder, and files that are none."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.png", "b.JPG", "sub/c.webp"):
        Image.new("RGB", (8, 6), "teal").save(folder / name)
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_bytes(b"")
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> type[StubModel]:
    StubModel.count, StubModel.requests, StubModel.errors = 0, [], {}
    monkeypatch.setattr("cli.local.LocalModel", StubModel)
    return StubModel


@pytest.fixture
def many_photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        Image.new("RGB", (8, 6), (number, 0, 0)).save(folder / name)
    return folder


@pytest.fixture
def service(script: Script) -> Iterator[FakeService]:
    service = FakeService(script)
    yield service
    # What still waits for a job's end must not keep the server's threads.
    service.release()
