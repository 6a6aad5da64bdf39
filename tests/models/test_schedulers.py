"""The schedule and its steps; the solvers on a distribution whose exact solution is known."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.config import Prediction
from models.errors import InvalidOption
from models.parameters import SamplerName
from models.schedulers import (
    DDIM,
    DDPM,
    Multistep,
    Scheduler,
    add_noise,
    alphas_cumprod,
    make_scheduler,
    respaced_timesteps,
    solver_timesteps,
)


@given(st.integers(2, 1000))
def test_respaced_timesteps_rise_from_the_first_to_the_last(steps: int) -> None:
    timesteps = respaced_timesteps(steps)
    assert len(timesteps) == steps
    assert timesteps[0] == 0
    assert timesteps[-1] == 999
    assert all(a < b for a, b in pairwise(timesteps))


def test_sampling_may_begin_at_a_lower_timestep() -> None:
    assert DDPM(1, first=250).timesteps == [250]
    assert DDPM(3, first=250).timesteps == [250, 125, 0]
    assert make_scheduler("ddpm", 2, "epsilon", first=10).timesteps == [10, 0]
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
    scheduler = make_scheduler(name, 10, prediction)
    sample = add_noise(clean, torch.randn_like(clean), scheduler.timesteps[0])
    for index, timestep in enumerate(scheduler.timesteps):
        a = float(alphas_cumprod()[timestep])
        noise = (sample - math.sqrt(a) * clean) / math.sqrt(1 - a)
        v = math.sqrt(a) * noise - math.sqrt(1 - a) * clean
        answer = noise if prediction == "epsilon" else v
        fresh = torch.randn_like(clean) if scheduler.needs_noise(index) else None
        sample = scheduler.step(index, sample, answer, fresh)
    # DDIM ends on the schedule's first timestep, where a little noise is left.
    assert float((sample - clean).abs().max()) < (1e-9 if name == "ddpm" else 0.2)


def test_ddim_with_eta_zero_asks_for_no_noise() -> None:
    scheduler = DDIM(5, eta=0.0)
    assert not any(scheduler.needs_noise(i) for i in range(5))


def test_eta_is_handed_to_ddim_and_is_1_by_default() -> None:
    for eta, share in ((None, 1.0), (0.0, 0.0), (0.4, 0.4)):
        scheduler = make_scheduler("ddim", 5, "epsilon", eta)
        assert isinstance(scheduler, DDIM)
        assert scheduler.sigma(0) == pytest.approx(share * DDIM(5).sigma(0))


def test_an_unknown_sampler_is_refused_by_name() -> None:
    with pytest.raises(InvalidOption, match=r"'euler'.*ddpm, ddim, dpmpp, unipc"):
        make_scheduler("euler", 5, "epsilon")


SOLVERS = ("dpmpp", "unipc")
SHAPE = (1, 4, 16, 16)
MEAN = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
SPREAD = 0.3 + 0.7 * torch.rand(SHAPE, generator=torch.Generator().manual_seed(2))
"""Data: each element its own normal distribution, with this mean and standard deviation."""


def perfect(sample: Tensor, timestep: int, prediction: Prediction = "epsilon") -> Tensor:
    """What a network that knows the data exactly predicts."""
    a = float(alphas_cumprod()[timestep])
    deviation = sample - math.sqrt(a) * MEAN
    noise = math.sqrt(1 - a) * deviation / (a * SPREAD**2 + 1 - a)
    if prediction == "epsilon":
        return noise
    clean = (sample - math.sqrt(1 - a) * noise) / math.sqrt(a)
    return math.sqrt(a) * noise - math.sqrt(1 - a) * clean


def exact(start: Tensor, timestep: int) -> Tensor:
    """Where the probability-flow ODE leads from `start`: deviations shrink with the marginals'."""
    a = float(alphas_cumprod()[timestep])
    return MEAN + SPREAD * (start - math.sqrt(a) * MEAN) / torch.sqrt(a * SPREAD**2 + 1 - a)


def run(scheduler: Scheduler, start: Tensor, prediction: Prediction = "epsilon") -> Tensor:
    sample = start
    for index, timestep in enumerate(scheduler.timesteps):
        assert not scheduler.needs_noise(index)
        sample = scheduler.step(index, sample, perfect(sample, timestep, prediction), None)
    return sample


def error(scheduler: Scheduler) -> float:
    """Root mean square distance from the exact solution, of data of size 1."""
    start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))
    off = run(scheduler, start) - exact(start, scheduler.timesteps[0])
    return float(off.square().mean().sqrt())


def test_timesteps_are_different_and_fall_from_999_to_0_for_every_number_of_steps() -> None:
    for steps in range(2, 1001):
        timesteps = solver_timesteps(steps)
        assert len(timesteps) == steps
        assert (timesteps[0], timesteps[-1]) == (999, 0)
        assert all(a > b for a, b in pairwise(timesteps))
    assert solver_timesteps(1) == [999]


def test_timesteps_are_even_in_the_logarithm_of_signal_to_noise() -> None:
    a = alphas_cumprod()[solver_timesteps(12)]
    gaps = np.diff(np.log(a / (1 - a)))
    # Whole timesteps are coarse near 0, where the logarithm is steep.
    assert gaps[:9] == pytest.approx(gaps[0], rel=0.05)
    assert gaps == pytest.approx(gaps[0], rel=0.4)


@pytest.mark.parametrize("steps", [0, 1001])
@pytest.mark.parametrize("name", SOLVERS)
def test_an_impossible_number_of_steps_is_refused(name: Any, steps: int) -> None:
    with pytest.raises(InvalidOption, match=rf"steps is {steps}"):
        make_scheduler(name, steps, "epsilon")


@pytest.mark.parametrize("name", SOLVERS)
def test_twice_the_steps_leave_less_than_a_third_of_the_error(name: Any) -> None:
    """Of second order: a quarter, in the limit. DDIM, of first order, keeps half of it."""
    coarse, fine = (error(make_scheduler(name, steps, "epsilon")) for steps in (10, 20))
    assert coarse < 0.02
    assert coarse / fine > 3
    assert error(DDIM(10, eta=0.0)) / error(DDIM(20, eta=0.0)) == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("name", SOLVERS)
def test_diffusers_own_spacing_leaves_several_times_the_error(name: Any) -> None:
    """The reason for timesteps of our own: with ten even in time the last step is from 100."""
    schedulers: dict[str, Any] = {
        "dpmpp": DPMSolverMultistepScheduler,
        "unipc": UniPCMultistepScheduler,
    }
    reference = schedulers[name](beta_start=0.00085, beta_end=0.0120, beta_schedule="scaled_linear")
    reference.set_timesteps(10)
    start = sample = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))
    for timestep in reference.timesteps:
        predicted = perfect(sample, int(timestep))
        sample = reference.step(predicted, timestep, sample).prev_sample
    theirs = float((sample - exact(start, 999)).square().mean().sqrt())
    assert theirs > 4 * error(make_scheduler(name, 10, "epsilon"))


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("steps", [4, 10, 20])
def test_ddim_without_noise_is_several_times_further_from_the_exact_solution(
    name: Any, steps: int
) -> None:
    assert 2 * error(make_scheduler(name, steps, "epsilon")) < error(DDIM(steps, eta=0.0))


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 17, 1000])
def test_any_number_of_steps_ends_on_a_clean_latent(
    name: Any, steps: int, prediction: Prediction
) -> None:
    """One value of data is all there is: then every prediction names it, and so must the end."""
    scheduler = make_scheduler(name, steps, prediction)
    clean = torch.randn(SHAPE)
    sample = add_noise(clean, torch.randn(SHAPE), scheduler.timesteps[0])
    for index, timestep in enumerate(scheduler.timesteps):
        a = float(alphas_cumprod()[timestep])
        noise = (sample - math.sqrt(a) * clean) / math.sqrt(1 - a)
        v = math.sqrt(a) * noise - math.sqrt(1 - a) * clean
        sample = scheduler.step(index, sample, noise if prediction == "epsilon" else v, None)
    assert sample.dtype == torch.float32
    torch.testing.assert_close(sample, clean, rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", SOLVERS)
def test_both_kinds_of_prediction_lead_to_the_same_latent(name: Any) -> None:
    start = torch.randn(SHAPE)
    noise = run(make_scheduler(name, 10, "epsilon"), start)
    v = run(make_scheduler(name, 10, "v_prediction"), start, "v_prediction")
    torch.testing.assert_close(noise, v, rtol=0, atol=1e-4)


def test_dpmpp_does_what_diffusers_does_with_these_timesteps_of_the_whole_schedule() -> None:
    # Any: diffusers wraps the class so that a type checker sees neither arguments nor methods.
    scheduler: Any = DPMSolverMultistepScheduler
    reference = scheduler(beta_start=0.00085, beta_end=0.0120, beta_schedule="scaled_linear")
    ours = Multistep("dpmpp", 10)
    reference.set_timesteps(timesteps=ours.timesteps)
    assert_same_path(ours, reference)


def test_unipc_does_what_diffusers_does_with_these_timesteps_of_the_whole_schedule() -> None:
    scheduler: Any = UniPCMultistepScheduler
    reference = scheduler(beta_start=0.00085, beta_end=0.0120, beta_schedule="scaled_linear")
    ours = Multistep("unipc", 10)
    reference.set_timesteps(10)
    # It takes no list of timesteps, but it reads its noise levels from here.
    a = reference.alphas_cumprod[ours.timesteps]
    reference.sigmas = torch.cat([((1 - a) / a).sqrt(), torch.zeros(1)])
    reference.timesteps = torch.tensor(ours.timesteps)
    assert_same_path(ours, reference)


def assert_same_path(ours: Scheduler, reference: Any) -> None:
    """Every canvas on the way; the tolerance is for sums of the schedule in float32."""
    sample = expected = torch.randn(SHAPE)
    for index, timestep in enumerate(ours.timesteps):
        sample = ours.step(index, sample, perfect(sample, timestep), None)
        expected = reference.step(perfect(expected, timestep), timestep, expected).prev_sample
        torch.testing.assert_close(sample, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_same_start_gives_the_same_latent_bit_for_bit(name: Any) -> None:
    start = torch.randn(SHAPE)
    first, again = (run(make_scheduler(name, 7, "epsilon"), start) for _ in range(2))
    assert torch.equal(first, again)
