from __future__ import annotations

import pytest
import structlog

# Before any test module imports torch: the package says how OpenMP's threads wait.
import worker

assert worker.__doc__


@pytest.fixture(autouse=True, scope="session")
def plain_logs() -> None:
    """Log lines as they are: unconfigured, structlog draws every traceback in colour."""
    structlog.configure(
        processors=[
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(key_order=["event"]),
        ]
    )
