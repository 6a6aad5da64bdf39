"""A server to talk to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.scripted_server import Script, serve


@pytest.fixture
def script() -> Iterator[Script]:
    with serve() as script:
        yield script
