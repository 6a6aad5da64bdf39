"""A server to talk to, and every test once with each client."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.client.shells import AsyncShell, FakeClock, Shell, SyncShell
from tests.scripted_server import IMAGE, Script, serve

MakeClient = Callable[..., Shell]


@pytest.fixture
def script() -> Iterator[Script]:
    with serve() as script:
        yield script


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    return FakeClock(monkeypatch)


@pytest.fixture(params=[SyncShell, AsyncShell], ids=["sync", "async"])
def make_client(request: pytest.FixtureRequest, clock: FakeClock) -> Iterator[MakeClient]:
    """Makes clients of an address."""
    with ExitStack() as shells:

        def make(url: str, **options: Any) -> Shell:
            shell: Shell = request.param(url, **options)
            shells.callback(shell.close)
            return shell

        yield make


@pytest.fixture
def client(make_client: MakeClient, script: Script) -> Shell:
    return make_client(script.url)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "in.png"
    path.write_bytes(IMAGE)
    return path
