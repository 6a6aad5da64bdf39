"""The result has exactly the size asked, whatever goes in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

import models.estimate
from models.checkpoints.folder import random_networks
from models.errors import InvalidOption
from models.memory import Memory
from models.options import Options
from models.pipeline import StableSR
from models.sampling import StepRequest
from tests.models import narrow


class Coder:
    """Stands in for the autoencoder: tensors of the shapes that it takes and gives."""

    def encode(self, image: Tensor, pieces: object, **more: object) -> Coder:
        self.latent = F.avg_pool2d(image[:, [0, 1, 2, 0]], 8)
        return self

    def decode(self, latent: Tensor, *given: object, **more: object) -> Tensor:
        return F.interpolate(self.latent[:, :3], scale_factor=8.0)

    taps, held = None, 0

    def close(self) -> None:
        pass


class StandIn(StableSR):
    """The pipeline itself, all networks replaced."""

    def predict(
        self, requests: Sequence[StepRequest], poll: Callable[[], None] = lambda: None
    ) -> list[Tensor]:
        return [request.noisy for request in requests]


@pytest.fixture(scope="module")
def quick() -> Iterator[StableSR]:
    """Of a small native size, so that hundreds of images take seconds."""
    cpu, dtype = torch.device("cpu"), torch.float32
    sr = StandIn(random_networks(narrow.CONFIG, cpu, dtype), narrow.PRESET, cpu, dtype)
    sr._autoencoder = Coder()  # type: ignore[assignment]  # only what is called of it
    with pytest.MonkeyPatch.context() as patch:
        # Counting what strips take is slower than these networks.
        patch.setattr(models.estimate, "peak_bytes", lambda *given, **more: Memory(0, 0, 0))
        yield sr


def scales() -> st.SearchStrategy[float]:
    return st.one_of(st.integers(1, 16).map(float), st.floats(1, 16))


@settings(
    max_examples=320, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(1, 32), st.integers(1, 32), scales(), st.sampled_from(["adain", "wavelet"]))
@example(1, 1, 1.0, "adain")
@example(1, 40, 1.0, "wavelet")
@example(40, 1, 1.0, "adain")
@example(3, 5, 1.5, "adain")
def test_every_size_scale_and_aspect_comes_out_exactly(
    quick: StableSR, width: int, height: int, scale: float, fix: str
) -> None:
    image = torch.rand(1, 3, height, width)
    options = Options(scale=scale, steps=1, color_fix="wavelet" if fix == "wavelet" else "adain")
    result = quick.upscale(image, options)
    assert tuple(result.shape) == (1, 3, round(scale * height), round(scale * width))
    assert min(result.shape) >= 1
    assert bool(result.isfinite().all())
    assert 0 <= float(result.min()) <= float(result.max()) <= 1


@pytest.mark.parametrize(
    ("width", "height", "scale"),
    [(1, 1, 4.0), (1, 3, 2.0), (37, 23, 1.37), (480, 270, 4.0)],
)
def test_the_embedded_weights_give_exactly_that_size(width: int, height: int, scale: float) -> None:
    sr = StableSR.from_preset("tiny")
    options = Options(scale=scale, steps=1, fidelity_weight=0.0)
    result = sr.upscale(torch.rand(1, 3, height, width), options)
    assert tuple(result.shape[2:]) == (round(scale * height), round(scale * width))


@pytest.mark.parametrize(("width", "height"), [(1, 20_000), (20_000, 1), (3, 9000)])
def test_a_strip_that_cannot_be_computed_is_refused_before_anything_is(
    width: int, height: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sr = StableSR.from_preset("tiny")
    monkeypatch.setattr("models.pipeline.upsampled", None)
    with pytest.raises(InvalidOption, match="shorter side is enlarged to 512 at least"):
        sr.prepare(torch.rand(1, 3, height, width), Options())


def test_an_image_is_neither_stretched_nor_moved(quick: StableSR) -> None:
    """A corner of another colour stays where it was, to a pixel of the input."""
    image = torch.zeros(1, 3, 30, 50)
    image[:, :, 20:, 40:] = 1.0
    result = quick.upscale(image, Options(scale=3.7, color_fix="none"))
    bright = (result[0].mean(0) > 0.5).nonzero().min(0).values.tolist()
    assert bright == pytest.approx([20 * 3.7, 40 * 3.7], abs=8)
