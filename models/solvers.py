"""DPM-Solver++ and UniPC: solvers of the probability-flow ODE, through diffusers' schedulers.

Both are of second order and keep the last two predictions: DPM-Solver++(2M), Lu et al., arXiv
2211.01095, algorithm 2; UniPC with B(h) = e^h - 1, Zhao et al., arXiv 2302.04867. They add no
noise: the seed decides the start and nothing else.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler
from torch import Tensor

from models.config import Prediction
from models.diffusion import TRAINING_STEPS, alphas_cumprod, check_steps

__all__ = ["Multistep", "solver_timesteps"]


def solver_timesteps(steps: int) -> list[int]:
    """`steps` different timesteps, descending from 999 to 0, as even in log-SNR as they come.

    Even in log-SNR, because that is the variable in which both methods are of second order
    (Lu et al., arXiv 2206.00927, section 3). Even in time, which is diffusers' default, leaves a
    last step from timestep 100 of 1000 with ten steps, and several times the error.

    Raises:
        InvalidOption: steps outside 1..1000.
    """
    check_steps(steps)
    if steps == 1:
        return [TRAINING_STEPS - 1]
    alphas = alphas_cumprod()
    noise_to_signal = np.log((1 - alphas) / alphas)
    even = np.linspace(noise_to_signal[0], noise_to_signal[-1], steps)
    places = np.interp(even, noise_to_signal, np.arange(TRAINING_STEPS))
    kept: list[int] = []
    for index, place in enumerate(places):
        # Each above the one before, and with room for those that follow.
        least = kept[-1] + 1 if kept else 0
        most = TRAINING_STEPS - (steps - index)
        kept.append(min(max(round(float(place)), least), most))
    return kept[::-1]


class Multistep:
    """A diffusers scheduler over our timesteps. It has a memory: one canvas, steps in order."""

    def __init__(
        self, name: Literal["dpmpp", "unipc"], steps: int, prediction: Prediction = "epsilon"
    ) -> None:
        self.timesteps = solver_timesteps(steps)
        # The scheduler is given a schedule of these timesteps alone, as if the model had been
        # trained on `steps` of them, so that it takes exactly those; its own ways of choosing
        # some out of 1000 repeat one, or add a negative one, for some numbers of steps.
        alphas = alphas_cumprod()[self.timesteps[::-1]]
        betas = 1 - alphas / np.append(1.0, alphas[:-1])
        # Any: diffusers wraps these classes so that a checker sees neither arguments nor methods.
        schedulers: dict[str, Any] = {
            "dpmpp": DPMSolverMultistepScheduler,
            "unipc": UniPCMultistepScheduler,
        }
        self._scheduler = schedulers[name](
            num_train_timesteps=steps,
            trained_betas=betas,
            prediction_type=prediction,
            timestep_spacing="trailing",
            final_sigmas_type="zero",
        )
        self._scheduler.set_timesteps(steps)
        self._scheduler.set_begin_index(0)

    def needs_noise(self, index: int) -> bool:
        return False

    def step(self, index: int, sample: Tensor, prediction: Tensor, noise: Tensor | None) -> Tensor:
        own_timestep = len(self.timesteps) - 1 - index
        following: Tensor
        (following,) = self._scheduler.step(prediction, own_timestep, sample, return_dict=False)
        return following
