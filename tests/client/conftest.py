"""A server to talk to, and every test once with each client."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(params=[SyncShell, AsyncShell], ids=["sync", "async"])
def make_client(request: pytest.FixtureRequest, clock: FakeClock) -> Iterator[MakeClient]:
    """Makes clients of an address."""
    made: list[Shell] = []

    def make(url: str, **options: Any) -> Shell:
        made.append(request.param(url, clock, **options))
        return made[-1]

    yield make
    for shell in made:
        shell.close()


@pytest.fixture
def client(make_client: MakeClient, script: Script) -> Shell:
    return make_client(script.url)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "in.png"
    path.write_bytes(IMAGE)
    return path
