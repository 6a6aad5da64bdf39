from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

# Before any test module imports torch: the package says how OpenMP's threads wait.
import worker
from tests.worker.in_process import serving
from tests.worker.processes import House
from worker.attempt import Process

assert worker.__doc__


@pytest.fixture
def house(redis_url: str, tmp_path: Path) -> Iterator[House]:
    """Closed by hand: classes that tests define keep it in a cycle, and a socket that the
    garbage collector finds there is a warning somewhere else."""
    house = House(redis_url, tmp_path)
    yield house
    house.queue.close()


@pytest.fixture
def process(house: House) -> Iterator[Process]:
    with serving(house) as process:
        yield process


@pytest.fixture(autouse=True)
def plain_logs() -> None:
    """Log lines as they are: unconfigured, structlog draws every traceback in colour, with all
    tensors, which takes seconds; and tests of other folders leave it unconfigured."""
    structlog.configure(
        processors=[
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(key_order=["event"]),
        ]
    )
