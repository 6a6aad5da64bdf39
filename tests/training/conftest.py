"""A teacher and a critic as small as the runs."""

from __future__ import annotations

from functools import partial

import pytest

from tests.training.small_run import Bicubic
from training.image_loss import PatchCritic


@pytest.fixture
def teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.sources.RRDBNet.from_model", lambda path: Bicubic())
    monkeypatch.setattr("training.image_loss.PatchCritic", partial(PatchCritic, 4))
