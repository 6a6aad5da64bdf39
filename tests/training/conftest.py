"""A teacher as small as the runs."""

from __future__ import annotations

import pytest

from tests.training.small_run import Bicubic


@pytest.fixture
def teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.shards.RRDBNet.from_model", lambda path: Bicubic())
