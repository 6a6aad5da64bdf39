"""DPM-Solver++ and UniPC, on a distribution whose exact solution is known."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler
from torch import Tensor

from models.config import Prediction
from models.diffusion import DDIM, Stepper, add_noise, alphas_cumprod, make_stepper
from models.errors import InvalidOption
from models.solvers import Multistep, solver_timesteps

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


def run(stepper: Stepper, start: Tensor, prediction: Prediction = "epsilon") -> Tensor:
    sample = start
    for index, timestep in enumerate(stepper.timesteps):
        assert not stepper.needs_noise(index)
        sample = stepper.step(index, sample, perfect(sample, timestep, prediction), None)
    return sample


def error(stepper: Stepper) -> float:
    """Root mean square distance from the exact solution, of data of size 1."""
    start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))
    off = run(stepper, start) - exact(start, stepper.timesteps[0])
    return float(off.square().mean().sqrt())


def test_timesteps_are_different_and_fall_from_999_to_0_for_every_number_of_steps() -> None:
    for steps in range(2, 1001):
        kept = solver_timesteps(steps)
        assert len(kept) == steps
        assert (kept[0], kept[-1]) == (999, 0)
        assert all(a > b for a, b in pairwise(kept))
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
        make_stepper(name, steps, "epsilon")


@pytest.mark.parametrize("name", SOLVERS)
def test_twice_the_steps_leave_less_than_a_third_of_the_error(name: Any) -> None:
    """Of second order: a quarter, in the limit. DDIM, of first order, keeps half of it."""
    coarse, fine = (error(make_stepper(name, steps, "epsilon")) for steps in (10, 20))
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
    assert theirs > 4 * error(make_stepper(name, 10, "epsilon"))


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("steps", [4, 10, 20])
def test_ddim_without_noise_is_several_times_further_from_the_exact_solution(
    name: Any, steps: int
) -> None:
    assert 2 * error(make_stepper(name, steps, "epsilon")) < error(DDIM(steps, eta=0.0))


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 17, 1000])
def test_any_number_of_steps_ends_on_a_clean_latent(
    name: Any, steps: int, prediction: Prediction
) -> None:
    """One value of data is all there is: then every prediction names it, and so must the end."""
    stepper = make_stepper(name, steps, prediction)
    clean = torch.randn(SHAPE)
    sample = add_noise(clean, torch.randn(SHAPE), stepper.timesteps[0])
    for index, timestep in enumerate(stepper.timesteps):
        a = float(alphas_cumprod()[timestep])
        noise = (sample - math.sqrt(a) * clean) / math.sqrt(1 - a)
        v = math.sqrt(a) * noise - math.sqrt(1 - a) * clean
        sample = stepper.step(index, sample, noise if prediction == "epsilon" else v, None)
    assert sample.dtype == torch.float32
    torch.testing.assert_close(sample, clean, rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", SOLVERS)
def test_both_kinds_of_prediction_lead_to_the_same_latent(name: Any) -> None:
    start = torch.randn(SHAPE)
    noise = run(make_stepper(name, 10, "epsilon"), start)
    v = run(make_stepper(name, 10, "v_prediction"), start, "v_prediction")
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


def assert_same_path(ours: Stepper, reference: Any) -> None:
    """Every canvas on the way; the tolerance is for sums of the schedule in float32."""
    sample = expected = torch.randn(SHAPE)
    for index, timestep in enumerate(ours.timesteps):
        sample = ours.step(index, sample, perfect(sample, timestep), None)
        expected = reference.step(perfect(expected, timestep), timestep, expected).prev_sample
        torch.testing.assert_close(sample, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_same_start_gives_the_same_latent_bit_for_bit(name: Any) -> None:
    start = torch.randn(SHAPE)
    first, again = (run(make_stepper(name, 7, "epsilon"), start) for _ in range(2))
    assert torch.equal(first, again)
