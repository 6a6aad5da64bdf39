"""The whole way of an image, and what the pipeline holds of it meanwhile."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import models.vae
from models.checkpoints.files import preset_folder
from models.checkpoints.folder import random_networks
from models.color import correct_rows, join_rows
from models.errors import InvalidOption, NotFinite, UnknownPreset, WeightsNotFound
from models.geometry import output_size
from models.memory import Memory, MemoryBudget
from models.parameters import Init, preset_parameters
from models.pipeline import Progress, StableSR
from models.presets import get_preset
from models.sampling import CanvasStep, drive_all
from models.schedulers import add_noise
from tests.models import narrow
from tests.models.driving import latent_of
from tests.models.narrow import pipeline

FEW = 3
SEEDS = (11, 5)
CPU = torch.device("cpu")
OPTIONS = narrow.parameters(scale=1.5, seed=3)
IMAGE = torch.rand(1, 3, 60, 90, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def sr() -> StableSR:
    return pipeline()


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Smooth colours with a few edges, (1, 3, height, width)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 5, 5, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")


@pytest.mark.parametrize(
    ("height", "width", "scale"),
    [(25, 33, 4.0), (33, 65, 1.5)],
)
def test_the_result_has_exactly_the_size_asked(
    sr: StableSR, height: int, width: int, scale: float
) -> None:
    result = sr.upscale(picture(height, width), narrow.parameters(scale=scale, steps=1))
    assert tuple(result.shape[2:]) == (round(scale * height), round(scale * width))
    assert tuple(result.shape[2:]) == output_size(height, width, scale)
    assert result.dtype == torch.float32
    assert 0 <= float(result.min()) <= float(result.max()) <= 1


def test_the_same_seed_gives_the_same_image_and_another_seed_another(sr: StableSR) -> None:
    image = picture(16, 16)
    first = sr.upscale(image, narrow.parameters(steps=FEW, seed=5, fidelity_weight=0.0))
    again = sr.upscale(image, narrow.parameters(steps=FEW, seed=5, fidelity_weight=0.0))
    other = sr.upscale(image, narrow.parameters(steps=FEW, seed=6, fidelity_weight=0.0))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_distilled_weights_begin_at_the_latent_of_the_input_and_one_step_draws_no_noise() -> None:
    cpu, dtype = torch.device("cpu"), torch.float32
    config = replace(narrow.CONFIG, first_timestep=120, noised_start=False)
    sr = StableSR(random_networks(config, cpu, dtype), narrow.PRESET, cpu, dtype)
    image = picture(16, 16)
    with sr.prepare(image, narrow.parameters()) as prepared:
        step = next(sr.sample(prepared, narrow.parameters(steps=1)))
        begin = step.part(0, 1)
        assert begin.timestep == 120
        assert torch.equal(begin.noisy, prepared.latent)
        for other in (
            narrow.parameters(steps=1, start="noise"),
            narrow.parameters(steps=1, sampler="unipc"),
        ):
            begin = next(sr.sample(prepared, other)).part(0, 1)
            assert begin.timestep == 999
            assert not torch.equal(begin.noisy, prepared.latent)
    one, two = (sr.upscale(image, narrow.parameters(steps=1, seed=seed)) for seed in (1, 2))
    assert torch.equal(one, two)
    one, two = (sr.upscale(image, narrow.parameters(steps=3, seed=seed)) for seed in (1, 2))
    assert not torch.equal(one, two)


def test_the_fidelity_weight_changes_the_image(sr: StableSR) -> None:
    image = picture(16, 16)
    loose = sr.upscale(image, narrow.parameters(steps=FEW, fidelity_weight=0.0))
    close = sr.upscale(image, narrow.parameters(steps=FEW, fidelity_weight=1.0))
    assert float((loose - close).abs().mean()) > 1e-3


def test_progress_names_every_stage_and_every_step_in_order(sr: StableSR) -> None:
    seen: list[Progress] = []
    sr.upscale(picture(40, 40), narrow.parameters(steps=FEW), seen.append)
    denoising = [Progress("denoise", i, FEW) for i in range(FEW)]
    assert seen == [Progress("encode", 0, 1), *denoising, Progress("decode", 0, 1)]


def test_jobs_of_different_sizes_and_timesteps_in_one_batch_give_what_they_give_alone(
    sr: StableSR,
) -> None:
    small = narrow.parameters(steps=2, seed=1)
    large = narrow.parameters(steps=4, seed=2)
    jobs = [(picture(16, 16, 1), small), (picture(32, 50, 2), large)]
    prepared = [sr.prepare(image, options) for image, options in jobs]
    alone = [latent_of(sr, p, o) for p, (_, o) in zip(prepared, jobs, strict=True)]
    samplers = [sr.sample(p, o) for p, (_, o) in zip(prepared, jobs, strict=True)]
    for together, latent in zip(drive_all(samplers, sr.predict, 100), alone, strict=True):
        assert float((together - latent).norm() / latent.norm()) < 1e-5


def test_a_closed_sampler_is_cancelled(sr: StableSR) -> None:
    prepared = sr.prepare(picture(32, 32), narrow.parameters())
    sampler = sr.sample(prepared, narrow.parameters(steps=FEW))
    next(sampler)
    sampler.close()
    with pytest.raises(StopIteration):
        next(sampler)


def test_sampling_starts_at_the_noised_input_or_at_the_noise_alone() -> None:
    sr = pipeline()
    image = torch.rand(1, 3, 32, 32)
    canvases = {}
    for start in get_args(Init):
        options = narrow.parameters(start=start, seed=3)
        prepared = sr.prepare(image, options)
        step = next(sr.sample(prepared, options))
        assert isinstance(step, CanvasStep)
        canvases[start] = step.canvas
    noise = torch.randn(canvases["lr"].shape, generator=torch.Generator().manual_seed(3))
    assert torch.equal(canvases["noise"], noise)
    assert torch.equal(canvases["lr"], add_noise(prepared.latent, noise, 999))


@pytest.mark.parametrize("changes", [{"steps": 0}, {"tile_overlap": 64}, {"tile_overlap": -1}])
def test_a_sampler_refuses_impossible_options_before_its_first_step(
    sr: StableSR, changes: dict[str, int]
) -> None:
    options = narrow.parameters().model_copy(update=changes)
    # The overlap already decides how the image is planned.
    with pytest.raises(InvalidOption):
        sr.sample(sr.prepare(picture(32, 32), options), options)


def test_an_image_of_another_shape_is_refused(sr: StableSR) -> None:
    with pytest.raises(InvalidOption, match=r"\(1, 4, 8, 8\)"):
        sr.prepare(torch.rand(1, 4, 8, 8), narrow.parameters())


def test_a_strip_that_needs_a_gigantic_canvas_is_refused_at_once(sr: StableSR) -> None:
    with pytest.raises(InvalidOption, match=r"100000 x 1 pixels .* at 6400000 x 64 ="):
        sr.prepare(torch.rand(1, 3, 1, 100_000), narrow.parameters())


def test_an_image_is_the_same_when_others_are_worked_on_between_its_strips(sr: StableSR) -> None:
    strips = StableSR(sr.networks, sr.preset, sr.device, sr.dtype, MemoryBudget(decode_tile=16))
    large, small = picture(40, 50), picture(8, 10, seed=1)
    options = narrow.parameters(steps=1, seed=3)
    stepped_in: list[torch.Tensor] = []

    def upscaled(tell: Callable[[float], None]) -> torch.Tensor:
        with strips.prepare(large, options, tell) as prepared:
            stepped_in.append(torch.zeros(0))
            latent = latent_of(strips, prepared, options)
            return torch.cat(list(strips.rows(prepared, latent, options, tell)), dim=1)

    told: list[float] = []

    def guest(done: float) -> None:
        told.append(done)
        # Of hundreds of strips, so that it does not take minutes.
        if len(told) % 40 == 7:
            with strips.prepare(small, options) as prepared:
                stepped_in.append(prepared.latent)

    alone = upscaled(lambda done: None)
    stepped_in.clear()
    assert torch.equal(upscaled(guest), alone)
    [between] = [n for n, latent in enumerate(stepped_in) if not latent.numel()]
    first, *others = stepped_in[:between] + stepped_in[between + 1 :]
    assert 0 < between < len(others), f"{len(told)} strips; guests came in both stages"
    assert all(torch.equal(latent, first) for latent in others)


def test_no_image_steps_in_where_networks_take_turns_on_the_device(sr: StableSR) -> None:
    small, options = picture(16, 20), narrow.parameters()
    assert sr.steps_in(small, options)
    assert not sr.steps_in(picture(50, 60), options)
    moving = StableSR(sr.networks, sr.preset, sr.device, sr.dtype, MemoryBudget(offload=True))
    assert not moving.steps_in(small, options)


def test_what_was_done_otherwise_than_planned_is_told_by_what(sr: StableSR) -> None:
    strained = StableSR(sr.networks, sr.preset, sr.device, sr.dtype)
    assert strained.fallbacks == {}
    strained.fallbacks.note("rows", 8, 4)
    for _ in range(2):
        strained.fallbacks.add("eager_prompt")
    assert strained.fallbacks == {"rows": 1, "eager_prompt": 2}


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnknownPreset, match=r"'huge'.*tiny, stablesr-512"):
        StableSR.from_preset("huge")


def test_missing_weights_are_named_with_their_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STABLESR_WEIGHTS", str(tmp_path))
    with pytest.raises(WeightsNotFound, match=str(tmp_path / "stablesr-512")):
        StableSR.from_preset("stablesr-512")


def test_each_result_is_that_of_its_seed_alone(sr: StableSR) -> None:
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    # A solver with a memory, which must not be shared.
    options = narrow.parameters(sampler="unipc", steps=2)
    rows = sr.upscale_rows(image, options, SEEDS)
    results = [join_rows(strips, (64, 64)) for strips in rows]
    for seed, result in zip(SEEDS, results, strict=True):
        alone = sr.upscale(image, options.model_copy(update={"seed": seed}))
        torch.testing.assert_close(result, alone, rtol=0, atol=1e-4)
    assert float((results[0] - results[1]).abs().mean()) > 1e-3


def test_the_image_is_encoded_once_and_each_seed_decoded_when_asked_for(sr: StableSR) -> None:
    seen: list[Progress] = []
    options = narrow.parameters(steps=2, fidelity_weight=0.0)
    results = sr.upscale_rows(torch.rand(1, 3, 16, 16), options, SEEDS, seen.append)
    shared = [Progress("encode", 0, 1), Progress("denoise", 0, 2), Progress("denoise", 1, 2)]
    next(results)
    assert seen == [*shared, Progress("decode", 0, 1)]
    next(results)
    assert seen == [*shared, Progress("decode", 0, 1), Progress("decode", 0, 1)]


@pytest.fixture
def on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StableSR:
    """Keeps its maps in files, because a limit leaves no room for them."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    sr = pipeline(decode_tile=8)
    roomy = sr.planner.plan(60, 90, OPTIONS).peaks
    tight = max(peak.host for peak in roomy.values()) - 1
    monkeypatch.setattr(sr.planner, "memory", lambda in_use: Memory(0, tight, 10**12))
    assert sr.planner.plan(60, 90, OPTIONS).strips.keep == "disk"
    return sr


def open_scratch(folder: Path) -> list[str]:
    """Files of the folder that this process has open; they have no names in it any more."""
    found = (os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink())
    return [path for path in found if path.startswith(str(folder))]


@pytest.mark.parametrize("fix", ["adain", "wavelet", "none"])
@pytest.mark.parametrize("size", [(60, 90), (20, 31)])
def test_rows_are_what_the_whole_image_would_be(fix: Any, size: tuple[int, int]) -> None:
    """Against the way that holds everything: encode, decode, correct, crop and resize at once."""
    sr = pipeline(decode_tile=16)
    networks, options = sr.networks, narrow.parameters(scale=1.5, seed=3, color_fix=fix)
    image = torch.rand(1, 3, *size)
    with sr.prepare(image, options) as prepared, torch.inference_mode():
        layout = prepared.plan.layout
        encoded = networks.autoencoder.encode(prepared.reference)
        whole = networks.autoencoder.latent(encoded.moments)
        torch.testing.assert_close(prepared.latent, whole, rtol=1e-4, atol=1e-5)
        latent = latent_of(sr, prepared, options)
        unscaled = networks.autoencoder.unscale(latent)
        decoded = networks.autoencoder.decode(unscaled, encoded.features, torch.tensor(0.5))
        [corrected] = correct_rows(decoded, prepared.reference, fix, decoded.shape[2])
        wanted = (corrected + 1) / 2
        wanted = wanted[:, :, : layout.canvas[0], : layout.canvas[1]]
        if layout.canvas != layout.size:
            wanted = F.interpolate(wanted, size=layout.size, mode="bicubic", antialias=True)
        rows = list(sr.rows(prepared, latent, options))
        assert all(strip.shape[0] == 3 and strip.dtype == torch.float32 for strip in rows)
        found = torch.cat(rows, dim=1)[None]
        torch.testing.assert_close(found, wanted.clamp(0, 1), rtol=0, atol=2e-5)
        assert torch.equal(found, sr.decode(prepared, latent, options))


def test_maps_on_disk_give_the_image_that_maps_in_memory_give(
    on_disk: StableSR, tmp_path: Path
) -> None:
    near = pipeline(decode_tile=8)
    assert torch.equal(on_disk.upscale(IMAGE, OPTIONS), near.upscale(IMAGE, OPTIONS))
    assert open_scratch(tmp_path) == []


def test_features_are_held_until_the_image_is_closed(on_disk: StableSR, tmp_path: Path) -> None:
    with on_disk.prepare(IMAGE, OPTIONS) as prepared:
        assert open_scratch(tmp_path)
        assert prepared.memory.disk > 0
        assert prepared.memory.host == prepared.reference.nbytes
    assert open_scratch(tmp_path) == []
    prepared.close()


class Canceled(Exception):
    pass


@pytest.mark.parametrize("stage", ["encode", "decode"])
def test_an_image_canceled_between_two_strips_leaves_nothing(
    on_disk: StableSR, tmp_path: Path, stage: str
) -> None:
    def cancel(done: float) -> None:
        if done > 0.5:
            raise Canceled

    heard: list[float] = []
    if stage == "encode":
        with pytest.raises(Canceled):
            on_disk.prepare(IMAGE, OPTIONS, cancel)
    else:
        with on_disk.prepare(IMAGE, OPTIONS, heard.append) as prepared:
            latent = latent_of(on_disk, prepared, OPTIONS)
            with pytest.raises(Canceled):
                on_disk.rows(prepared, latent, OPTIONS, cancel)
        assert heard == sorted(heard)
        assert heard[-1] == pytest.approx(1.0)
        assert len(heard) > 20
    assert open_scratch(tmp_path) == []


def test_an_abandoned_result_lets_go_of_its_image(on_disk: StableSR, tmp_path: Path) -> None:
    results = on_disk.upscale_rows(IMAGE, OPTIONS, [1, 2])
    next(results)
    assert open_scratch(tmp_path)
    assert isinstance(results, Iterator)
    results.close()  # type: ignore[attr-defined]  # a generator is what it is
    assert open_scratch(tmp_path) == []


def test_what_is_no_number_becomes_no_image(monkeypatch: pytest.MonkeyPatch) -> None:
    sr = pipeline()
    with sr.prepare(IMAGE, OPTIONS) as prepared:
        latent = latent_of(sr, prepared, OPTIONS)
        with pytest.raises(NotFinite, match="sampled latent, computed in float32"):
            sr.decode(prepared, latent.clone().index_fill(2, torch.tensor(3), torch.nan), OPTIONS)
        real = getattr(models.vae, "decode")  # noqa: B009  # a name that is not exported

        def overflowing(*given: Any, **more: Any) -> Tensor:
            image: Tensor = real(*given, **more)
            image[0, 1, -1, -1] = torch.inf
            return image

        monkeypatch.setattr(models.vae, "decode", overflowing)
        monkeypatch.setattr(sr, "dtype", torch.float16)
        with pytest.raises(NotFinite, match=r"decoded image, computed in float16.*bfloat16"):
            sr.decode(prepared, latent, OPTIONS)


def test_an_image_whose_steps_are_made_is_decoded_with_whatever_memory_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sr = pipeline()
    with sr.prepare(IMAGE, OPTIONS) as prepared:
        latent = latent_of(sr, prepared, OPTIONS)
        wanted = sr.decode(prepared, latent, OPTIONS)
        monkeypatch.setattr(sr.planner, "memory", lambda in_use: Memory(0, 0, 0))
        assert torch.equal(sr.decode(prepared, latent, OPTIONS), wanted)


def test_what_an_image_holds_is_not_counted_twice_when_it_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sr = pipeline()
    seen: list[Memory] = []
    real = sr.planner.memory

    def watched(in_use: Memory) -> Memory:
        seen.append(in_use)
        return real(in_use)

    monkeypatch.setattr(sr.planner, "memory", watched)
    with sr.prepare(IMAGE, OPTIONS) as prepared:
        sr.decode(prepared, latent_of(sr, prepared, OPTIONS), OPTIONS)
        assert seen == [Memory(0, 0, 0), prepared.memory]
        assert prepared.memory.host >= prepared.reference.nbytes


def test_with_offload_an_image_is_the_same() -> None:
    plain = pipeline().upscale(IMAGE, OPTIONS)
    taking_turns = pipeline(offload=True)
    assert torch.equal(taking_turns.upscale(IMAGE, OPTIONS), plain)
    assert taking_turns.planner.plan(60, 90, OPTIONS).offload


@cache
def small_tiny(dtype: torch.dtype) -> Tensor:
    """What the embedded weights make of an image, on a canvas of one small tile."""
    tiny = get_preset("tiny")
    small = replace(tiny, native=128, tile=16, overlap=8)
    image = F.interpolate(IMAGE[:, :, :6, :6], size=(32, 32), mode="bicubic").clamp(0, 1)
    options = preset_parameters(small)
    return StableSR.load(preset_folder(tiny), small, CPU, dtype).upscale(image, options)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_near_full_precision(dtype: torch.dtype) -> None:
    result = small_tiny(dtype)
    assert bool(result.isfinite().all())
    assert float((small_tiny(torch.float32) - result).abs().mean()) < 0.02
