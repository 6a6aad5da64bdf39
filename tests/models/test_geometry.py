"""The result has exactly the size asked, whatever goes in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

import models.plan
from models.checkpoints.files import preset_folder
from models.checkpoints.folder import describe, random_networks
from models.config import ModelConfig
from models.errors import InvalidOption
from models.geometry import MAX_CANVAS
from models.layout import Layout
from models.parameters import UpscaleParameters
from models.pipeline import StableSR
from models.presets import PRESETS, Preset
from models.sampling import StepRequest
from models.strips import Cost
from tests.models import narrow


class Coder:
    """Stands in for the autoencoder: tensors of the shapes that it takes and gives."""

    def encode(self, image: Tensor, strips: object, **more: object) -> tuple[Tensor, Coder, object]:
        self.latent = F.avg_pool2d(image[:, [0, 1, 2, 0]], 8)
        return self.latent, self, strips

    def decode(self, latent: Tensor, *given: object, **more: object) -> Tensor:
        return F.interpolate(self.latent[:, :3], scale_factor=8.0)

    features, nbytes = None, 0

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
    sr._vae = Coder()  # type: ignore[assignment]  # only what is called of it
    with pytest.MonkeyPatch.context() as patch:
        # Counting what strips take is slower than these networks.
        patch.setattr(models.plan, "coding_cost", lambda *given, **more: Cost(0, 0, 0))
        yield sr


@pytest.fixture(scope="module")
def tiny() -> StableSR:
    return StableSR.from_preset("tiny")


LONGEST = 400
PIXELS = 20_000, 20_000, 20_000, 410_000
"""Of most canvases and results, so that hundreds take seconds, and of some: a strip of 1 x 100."""


@st.composite
def sizes(draw: st.DrawFn) -> tuple[int, int, float]:
    """Width, height and scale: every side up to a few hundred, every aspect up to 1:100."""
    scale = draw(st.one_of(st.integers(1, 16).map(float), st.floats(1, 16)))
    pixels = draw(st.sampled_from(PIXELS))
    short = draw(st.integers(1, min(LONGEST, int(pixels**0.5 / scale))))
    room = pixels / (short * max(scale, narrow.PRESET.native / short) ** 2)
    long = draw(st.integers(short, max(short, min(LONGEST, 100 * short, int(room)))))
    return (short, long, scale) if draw(st.booleans()) else (long, short, scale)


@settings(
    max_examples=320, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(sizes(), st.sampled_from(["adain", "wavelet"]))
@example((1, 1, 1.0), "adain")
@example((1, 97, 1.0), "wavelet")
@example((97, 1, 1.0), "adain")
@example((3, 300, 1.5), "adain")
@example((400, 4, 15.7), "wavelet")
@example((399, 377, 1.0), "adain")
@example((39, 38, 15.9), "wavelet")
@example((480, 270, 4.0), "adain")
def test_every_size_scale_and_aspect_comes_out_exactly(
    quick: StableSR, size: tuple[int, int, float], fix: str
) -> None:
    width, height, scale = size
    assert width * height * scale**2 <= MAX_CANVAS
    image = torch.rand(1, 3, height, width)
    options = narrow.parameters(
        scale=scale, steps=1, color_fix="wavelet" if fix == "wavelet" else "adain"
    )
    result = quick.upscale(image, options)
    assert tuple(result.shape) == (1, 3, round(scale * height), round(scale * width))
    assert min(result.shape) >= 1
    assert bool(result.isfinite().all())
    assert 0 <= float(result.min()) <= float(result.max()) <= 1


@pytest.mark.parametrize(
    ("width", "height", "scale"),
    [(1, 1, 4.0), (37, 23, 1.37), (240, 135, 4.0)],
)
def test_the_embedded_weights_give_exactly_that_size(
    tiny: StableSR, width: int, height: int, scale: float
) -> None:
    options = narrow.parameters(scale=scale, steps=1, fidelity_weight=0.0)
    result = tiny.upscale(torch.rand(1, 3, height, width), options)
    assert tuple(result.shape[2:]) == (round(scale * height), round(scale * width))


@pytest.mark.parametrize(("width", "height"), [(1, 20_000), (20_000, 1), (3, 60_000)])
def test_a_strip_that_cannot_be_computed_is_refused_before_anything_is(
    tiny: StableSR, width: int, height: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.pipeline.enlarge", None)
    with pytest.raises(InvalidOption, match="shorter side is enlarged to 128 pixels at least"):
        tiny.prepare(torch.rand(1, 3, height, width), narrow.parameters())


@pytest.mark.parametrize(
    ("width", "height", "scale", "enlarged"),
    [
        (1, 20_000, 4.0, True),
        (100, 100_000, 4.0, True),
        (128, 70_000, 4.0, False),
        (1024, 1024, 16.0, False),
        (4000, 3000, 4.0, False),
    ],
)
def test_a_refused_size_is_told_its_own_reason(
    width: int, height: int, scale: float, enlarged: bool
) -> None:
    with pytest.raises(InvalidOption) as caught:
        layout(width, height, scale).check_canvas()
    assert ("shorter side is enlarged" in str(caught.value)) == enlarged
    assert str(caught.value).endswith("; at most 134217728 can be.")
    if (width, scale) == (1024, 16.0):
        assert "computed at 16384 x 16384 = 268435456 pixels; at most" in str(caught.value)


def layout(width: int, height: int, scale: float, preset: str = "stablesr-512") -> Layout:
    return Layout.of((height, width), UpscaleParameters(preset=preset, scale=scale))


def test_the_largest_canvas_is_possible() -> None:
    layout(11_585, 11_585, 1.0).check_canvas()
    with pytest.raises(InvalidOption):
        layout(11_585, 11_586, 1.0).check_canvas()


def test_a_lower_limit_bounds_the_canvas_and_a_higher_one_does_not_free_it() -> None:
    strip = layout(10, 2000, 1.0)
    strip.check_canvas(512 * 102_400)
    with pytest.raises(InvalidOption, match=r"512 x 102400 = 52428800 .* at most 52428799 can be"):
        strip.check_canvas(512 * 102_400 - 1)
    with pytest.raises(InvalidOption, match=f"at most {MAX_CANVAS} can be"):
        layout(11_585, 11_586, 1.0).check_canvas(2**40)


@pytest.mark.parametrize(
    ("width", "height", "scale", "note"),
    [
        (64, 64, 4.0, None),
        (128, 128, 4.0, None),
        (63, 64, 4.0, "512 x 520 pixels, 4 times"),
        (48, 48, 4.0, "512 x 512 pixels, 7 times"),
        (10, 2000, 1.0, "512 x 102400 pixels, 2621 times"),
    ],
)
def test_a_canvas_of_many_times_the_result_is_told(
    width: int, height: int, scale: float, note: str | None
) -> None:
    sentence = layout(width, height, scale).note
    assert (sentence is None) == (note is None)
    if sentence and note:
        assert note in sentence
        assert "because its shorter side is enlarged to 512 pixels at least" in sentence


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
@given(st.integers(1, 3000), st.integers(1, 3000), st.floats(1, 16), st.sampled_from([8, 16, 56]))
def test_canvas_and_tiles_are_those_of_the_loaded_networks(
    preset: Preset, width: int, height: int, scale: float, overlap: int
) -> None:
    options = UpscaleParameters(preset=preset.name, scale=scale, tile_overlap=overlap)
    config = ModelConfig()
    if preset.embedded:
        config = describe(preset_folder(preset))[0]
    layout = Layout.of((height, width), options)
    of_networks = Layout.of((height, width), options, preset, config)
    assert (layout.canvas, layout.tiles) == (of_networks.canvas, of_networks.tiles)
    assert layout.tiles == len(layout.grid.origins)


def test_an_image_is_neither_stretched_nor_moved(quick: StableSR) -> None:
    """A corner of another colour stays where it was, to a pixel of the input."""
    image = torch.zeros(1, 3, 30, 50)
    image[:, :, 20:, 40:] = 1.0
    result = quick.upscale(image, narrow.parameters(scale=3.7, color_fix="none"))
    bright = (result[0].mean(0) > 0.5).nonzero().min(0).values.tolist()
    assert bright == pytest.approx([20 * 3.7, 40 * 3.7], abs=8)
