"""Loading a model: over several devices, and what cannot go together."""

from __future__ import annotations

import pytest
import torch

from jobs.settings import Settings
from worker.errors import NotStarted
from worker.loading import load


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"device": "cpu,nonsense"}, "'nonsense', which cannot be used here"),
        ({"device": "cuda:1,cuda:1"}, "has cuda:1 twice"),
    ],
)
def test_what_several_devices_cannot_do_is_refused_in_a_sentence(
    given: dict[str, object], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.loading.StableSR", None)
    with pytest.raises(NotStarted, match=said):
        load(Settings(**given), jobs=1)


def test_tiles_of_one_image_go_over_all_devices_that_are_named() -> None:
    image = torch.rand(1, 3, 24, 24)
    sr = load(Settings(device="cpu,cpu"), jobs=1)
    assert list(map(str, sr.denoiser.devices)) == ["cpu", "cpu"]
    assert sr.upscale(image).shape == (1, 3, 96, 96)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_cpu_computes_in_float32_and_says_so_once(
    dtype: str, caplog: pytest.LogCaptureFixture
) -> None:
    sr = load(Settings(dtype=dtype, device="cpu,cpu"), jobs=1)
    assert sr.dtype is torch.float32
    assert caplog.messages == [f"the precision is {dtype}, but a CPU computes in float32"]
