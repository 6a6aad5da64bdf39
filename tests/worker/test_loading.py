"""Loading a model over several devices: what cannot go together is said before weights are read."""

from __future__ import annotations

import pytest

from jobs.settings import Settings
from worker.errors import NotStarted
from worker.loading import load


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"devices": "cpu,cpu", "reuse_every": 2}, "STABLESR_REUSE_EVERY is 2, but must be 1"),
        ({"devices": "cpu,nonsense"}, "'nonsense', which cannot be used here"),
        ({"devices": "cuda:1,cuda:1"}, "has cuda:1 twice"),
    ],
)
def test_what_several_devices_cannot_do_is_refused_in_a_sentence(
    given: dict[str, object], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.loading.StableSR", None)
    with pytest.raises(NotStarted, match=said):
        load(Settings(**given), jobs=1)
