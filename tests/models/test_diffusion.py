"""Schedules and steps."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st

from models.config import Prediction
from models.diffusion import (
    DDIM,
    DDPM,
    add_noise,
    alphas_cumprod,
    make_stepper,
    respaced_timesteps,
)
from models.errors import InvalidOption
from models.parameters import SamplerName


@given(st.integers(2, 1000))
def test_respaced_timesteps_rise_from_the_first_to_the_last(steps: int) -> None:
    kept = respaced_timesteps(steps)
    assert len(kept) == steps
    assert kept[0] == 0
    assert kept[-1] == 999
    assert all(a < b for a, b in pairwise(kept))


def test_sampling_may_begin_at_a_lower_timestep() -> None:
    assert DDPM(1, first=250).timesteps == [250]
    assert DDPM(3, first=250).timesteps == [250, 125, 0]
    assert make_stepper("ddpm", 2, "epsilon", first=10).timesteps == [10, 0]
    with pytest.raises(InvalidOption, match="steps is 12, but must be between 1 and 11"):
        DDPM(12, first=10)


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_an_impossible_number_of_steps_is_refused_with_the_range(steps: int) -> None:
    with pytest.raises(InvalidOption, match=rf"{steps}.*between 1 and 1000"):
        respaced_timesteps(steps)


def test_one_step_starts_at_the_noisiest_timestep() -> None:
    assert respaced_timesteps(1) == [999]
    assert not DDPM(1).needs_noise(0)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_ddpm_step_is_that_of_diffusers_with_the_same_timesteps(prediction: Prediction) -> None:
    steps = 7
    # diffusers wraps the class so that a type checker sees neither arguments nor methods.
    scheduler: Any = DDPMScheduler
    reference = scheduler(
        beta_start=0.00085,
        beta_end=0.0120,
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type=prediction,
        variance_type="fixed_small",
    )
    ours = DDPM(steps, prediction)
    reference.set_timesteps(timesteps=ours.timesteps)
    sample = torch.randn(1, 4, 8, 8)
    for index, timestep in enumerate(ours.timesteps[:-1]):
        predicted = torch.randn(1, 4, 8, 8)
        generator = torch.Generator().manual_seed(index)
        expected = reference.step(predicted, timestep, sample, generator=generator).prev_sample
        noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(index))
        got = ours.step(index, sample, predicted, noise)
        torch.testing.assert_close(got, expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", ["ddpm", "ddim"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_perfect_network_brings_back_the_clean_latent(
    name: SamplerName, prediction: Prediction
) -> None:
    clean = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    stepper = make_stepper(name, 10, prediction)
    sample = add_noise(clean, torch.randn_like(clean), stepper.timesteps[0])
    for index, timestep in enumerate(stepper.timesteps):
        a = float(alphas_cumprod()[timestep])
        noise = (sample - math.sqrt(a) * clean) / math.sqrt(1 - a)
        v = math.sqrt(a) * noise - math.sqrt(1 - a) * clean
        answer = noise if prediction == "epsilon" else v
        fresh = torch.randn_like(clean) if stepper.needs_noise(index) else None
        sample = stepper.step(index, sample, answer, fresh)
    # DDIM ends on the schedule's first timestep, where a little noise is left.
    assert float((sample - clean).abs().max()) < (1e-9 if name == "ddpm" else 0.2)


def test_ddim_with_eta_zero_asks_for_no_noise() -> None:
    stepper = DDIM(5, eta=0.0)
    assert not any(stepper.needs_noise(i) for i in range(5))


def test_eta_is_handed_to_ddim_and_is_1_when_nobody_says() -> None:
    for eta, taken in ((None, 1.0), (0.0, 0.0), (0.4, 0.4)):
        stepper = make_stepper("ddim", 5, "epsilon", eta)
        assert isinstance(stepper, DDIM)
        assert stepper.sigma(0) == pytest.approx(taken * DDIM(5).sigma(0))


def test_an_unknown_sampler_is_refused_by_name() -> None:
    with pytest.raises(InvalidOption, match=r"'euler'.*ddpm, ddim, dpmpp, unipc"):
        make_stepper("euler", 5, "epsilon")  # type: ignore[arg-type]  # wrong on purpose
