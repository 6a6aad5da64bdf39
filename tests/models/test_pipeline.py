"""The whole way of an image, on the embedded weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch

from models.checkpoints.folder import random_networks
from models.diffusion import add_noise
from models.errors import InvalidOption, UnknownPreset, WeightsNotFound
from models.parameters import Init
from models.pipeline import Progress, StableSR, output_size
from models.plan import Resources
from models.sampling import CanvasStep, Sampler, Step, drive
from tests.models import narrow

FEW = 3


@pytest.fixture(scope="module")
def sr() -> StableSR:
    cpu, dtype = torch.device("cpu"), torch.float32
    return StableSR(random_networks(narrow.CONFIG, cpu, dtype), narrow.PRESET, cpu, dtype)


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
    alone = [
        drive(sr.sample(p, o), lambda step: sr.predict([step.part(0, len(step))])[0])
        for p, (_, o) in zip(prepared, jobs, strict=True)
    ]
    running = {i: sr.sample(p, o) for i, (p, (_, o)) in enumerate(zip(prepared, jobs, strict=True))}
    together = run_together(sr, running)
    for i, latent in enumerate(alone):
        assert float((together[i] - latent).norm() / latent.norm()) < 1e-5


def run_together(sr: StableSR, running: dict[int, Sampler]) -> dict[int, torch.Tensor]:
    """All pending tiles of all samplers in one network call a cycle."""
    finished: dict[int, torch.Tensor] = {}
    waiting: dict[int, Step] = {i: next(s) for i, s in running.items()}
    while waiting:
        order = list(waiting)
        answers = sr.predict([waiting[i].part(0, len(waiting[i])) for i in order])
        for i, answer in zip(order, answers, strict=True):
            try:
                waiting[i] = running[i].send(answer)
            except StopIteration as end:
                finished[i] = end.value
                del waiting[i]
    return finished


def test_a_closed_sampler_is_cancelled(sr: StableSR) -> None:
    prepared = sr.prepare(picture(32, 32), narrow.parameters())
    sampler = sr.sample(prepared, narrow.parameters(steps=FEW))
    next(sampler)
    sampler.close()
    with pytest.raises(StopIteration):
        next(sampler)


def test_sampling_starts_at_the_noised_input_or_at_the_noise_alone() -> None:
    cpu, dtype = torch.device("cpu"), torch.float32
    sr = StableSR(random_networks(narrow.CONFIG, cpu, dtype), narrow.PRESET, cpu, dtype)
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
    with pytest.raises(InvalidOption, match=r"100000 x 1 pixels .* canvas of 6400000 x 64"):
        sr.prepare(torch.rand(1, 3, 1, 100_000), narrow.parameters())


def test_an_image_is_the_same_when_others_are_worked_on_between_its_strips(sr: StableSR) -> None:
    strips = StableSR(sr.networks, sr.preset, sr.device, sr.dtype, Resources(decode_tile=16))
    large, small = picture(40, 50), picture(8, 10, seed=1)
    options = narrow.parameters(steps=1, seed=3)
    stepped_in: list[torch.Tensor] = []

    def upscaled(tell: Callable[[float], None]) -> torch.Tensor:
        with strips.prepare(large, options, tell) as prepared:
            stepped_in.append(torch.zeros(0))
            latent = drive(
                strips.sample(prepared, options),
                lambda step: strips.predict([step.part(0, len(step))])[0],
            )
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


def test_nobody_steps_in_where_networks_take_turns_on_the_device(sr: StableSR) -> None:
    small, options = picture(16, 20), narrow.parameters()
    assert sr.steps_in(small, options)
    assert not sr.steps_in(picture(50, 60), options)
    moving = StableSR(sr.networks, sr.preset, sr.device, sr.dtype, Resources(offload=True))
    assert not moving.steps_in(small, options)


def test_what_was_done_otherwise_than_planned_is_told_by_what(sr: StableSR) -> None:
    strained = StableSR(sr.networks, sr.preset, sr.device, sr.dtype)
    assert strained.departures == {}
    strained.changes.note("rows", 8, 4)
    strained.denoiser.eager_calls["prompt"] += 2
    assert strained.departures == {"rows": 1, "eager_prompt": 2}


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnknownPreset, match=r"'huge'.*tiny, stablesr-512"):
        StableSR.from_preset("huge")


def test_missing_weights_are_named_with_their_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STABLESR_WEIGHTS", str(tmp_path))
    with pytest.raises(WeightsNotFound, match=str(tmp_path / "stablesr-512")):
        StableSR.from_preset("stablesr-512")
