"""The noise schedule, and the schedulers of the four samplers.

1000 steps with scaled-linear betas as in Stable Diffusion. The coefficients of DDPM and DDIM are
computed in float64 on the host and enter the step as plain numbers, so a step never waits for the
device. DPM-Solver++ and UniPC are those of diffusers, at timesteps of our own: solvers of second
order of the probability-flow ODE. They add no noise: the seed decides the start and nothing else.

    DDPM            Ho et al., arXiv 2006.11239, eq. 6-7
                    respaced as in Nichol & Dhariwal, arXiv 2102.09672
    DDIM            Song et al., arXiv 2010.02502, eq. 12 and 16
    DPM-Solver++    (2M): Lu et al., arXiv 2211.01095, algorithm 2
    UniPC           with B(h) = e^h - 1: Zhao et al., arXiv 2302.04867
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from models.config import Prediction
from models.errors import InvalidOption

TRAINING_STEPS = 1000


def alphas_cumprod() -> npt.NDArray[np.float64]:
    """Cumulative signal fraction at each of the 1000 timesteps, float64."""
    betas = np.linspace(math.sqrt(0.00085), math.sqrt(0.0120), TRAINING_STEPS) ** 2
    return np.cumprod(1.0 - betas).astype(np.float64)


def respaced_timesteps(steps: int, first: int = TRAINING_STEPS - 1) -> list[int]:
    """`steps` timesteps of the full schedule, ascending from 0 to `first`, both included."""
    _check_steps(steps, first)
    if steps == 1:
        return [first]
    return [round(i * first / (steps - 1)) for i in range(steps)]


def _check_steps(steps: int, first: int = TRAINING_STEPS - 1) -> None:
    """Raises InvalidOption for no steps, and for more than there are timesteps up to `first`."""
    if not 1 <= steps <= first + 1:
        raise InvalidOption(f"steps is {steps}, but must be between 1 and {first + 1}.")


def add_noise(latent: Tensor, noise: Tensor, timestep: int) -> Tensor:
    """The forward process at one timestep: sqrt(a) * latent + sqrt(1 - a) * noise."""
    a = float(alphas_cumprod()[timestep])
    return math.sqrt(a) * latent + math.sqrt(1 - a) * noise


class Scheduler(Protocol):
    """One sampler's arithmetic: which timesteps, and what a prediction makes of the canvas. Some
    keep what earlier steps predicted, so a scheduler serves one canvas, its steps in order."""

    @property
    def timesteps(self) -> list[int]:
        """Descending timesteps of the full schedule, as the networks see them."""

    def needs_noise(self, index: int) -> bool:
        """Whether the step at this index adds fresh noise."""

    def step(self, index: int, sample: Tensor, prediction: Tensor, noise: Tensor | None) -> Tensor:
        """The canvas after the step; all tensors (n, c, h, w)."""


class DDPM:
    """Ancestral sampling over respaced timesteps, variance "fixed small", x0 not clipped."""

    def __init__(
        self, steps: int, prediction: Prediction = "epsilon", first: int = TRAINING_STEPS - 1
    ) -> None:
        self.timesteps = respaced_timesteps(steps, first)[::-1]
        self._prediction = prediction
        self._alphas = alphas_cumprod()[self.timesteps]
        # Signal fraction after each step; the last step ends at the clean latent.
        self._next = np.append(self._alphas[1:], 1.0)

    def needs_noise(self, index: int) -> bool:
        return index < len(self.timesteps) - 1

    def step(self, index: int, sample: Tensor, prediction: Tensor, noise: Tensor | None) -> Tensor:
        a, following = float(self._alphas[index]), float(self._next[index])
        beta = 1 - a / following
        clean = _clean(sample, prediction, a, self._prediction)
        mean = (
            beta * math.sqrt(following) / (1 - a) * clean
            + (1 - following) * math.sqrt(1 - beta) / (1 - a) * sample
        )
        if noise is None:
            return mean
        return mean + math.sqrt(beta * (1 - following) / (1 - a)) * noise


class DDIM:
    """Implicit sampling with `eta` between 0 (deterministic) and 1 (as noisy as DDPM)."""

    def __init__(self, steps: int, prediction: Prediction = "epsilon", eta: float = 1.0) -> None:
        _check_steps(steps)
        stride = TRAINING_STEPS // steps
        self.timesteps = [i * stride for i in range(steps)][::-1]
        self._prediction = prediction
        self._eta = eta
        table = alphas_cumprod()
        self._alphas = table[self.timesteps]
        # The last step lands on the schedule's first timestep, not on the clean latent.
        self._next = np.append(self._alphas[1:], table[0])

    def needs_noise(self, index: int) -> bool:
        return self.sigma(index) > 0

    def sigma(self, index: int) -> float:
        a, following = float(self._alphas[index]), float(self._next[index])
        return self._eta * math.sqrt((1 - following) / (1 - a) * (1 - a / following))

    def step(self, index: int, sample: Tensor, prediction: Tensor, noise: Tensor | None) -> Tensor:
        a, following = float(self._alphas[index]), float(self._next[index])
        sigma = self.sigma(index)
        clean = _clean(sample, prediction, a, self._prediction)
        epsilon = (sample - math.sqrt(a) * clean) / math.sqrt(1 - a)
        out = math.sqrt(following) * clean + math.sqrt(1 - following - sigma**2) * epsilon
        return out if noise is None else out + sigma * noise


def _clean(sample: Tensor, prediction: Tensor, a: float, kind: Prediction) -> Tensor:
    """The clean latent that a prediction at signal fraction `a` implies."""
    if kind == "v_prediction":
        return math.sqrt(a) * sample - math.sqrt(1 - a) * prediction
    return (sample - math.sqrt(1 - a) * prediction) / math.sqrt(a)


def solver_timesteps(steps: int) -> list[int]:
    """`steps` different timesteps, descending from 999 to 0, as even in log-SNR as they come.

    Even in log-SNR, because that is the variable in which both methods are of second order
    (Lu et al., arXiv 2206.00927, section 3). Even in time, which is diffusers' default, leaves a
    last step from timestep 100 of 1000 with ten steps, and several times the error.
    """
    _check_steps(steps)
    if steps == 1:
        return [TRAINING_STEPS - 1]
    alphas = alphas_cumprod()
    noise_to_signal = np.log((1 - alphas) / alphas)
    even = np.linspace(noise_to_signal[0], noise_to_signal[-1], steps)
    places = np.interp(even, noise_to_signal, np.arange(TRAINING_STEPS))
    timesteps = [-1]
    for index, place in enumerate(places):
        # Each above the one before, and with room for those that follow.
        most = TRAINING_STEPS - (steps - index)
        timesteps.append(min(max(round(float(place)), timesteps[-1] + 1), most))
    return timesteps[:0:-1]


class Multistep:
    """A diffusers scheduler over our timesteps. It has a memory: one canvas, steps in order."""

    def __init__(self, name: str, steps: int, prediction: Prediction = "epsilon") -> None:
        self.timesteps = solver_timesteps(steps)
        # The scheduler is given a schedule of these timesteps alone, as if the model had been
        # trained on `steps` of them, so that it takes exactly those; its own ways of choosing
        # some out of 1000 repeat one, or add a negative one, for some numbers of steps.
        alphas = alphas_cumprod()[self.timesteps[::-1]]
        betas = 1 - alphas / np.append(1.0, alphas[:-1])
        # Here, because only these two samplers need this import.
        from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler

        # Any: diffusers wraps these classes so that a checker sees neither arguments nor methods.
        kind: Any = DPMSolverMultistepScheduler if name == "dpmpp" else UniPCMultistepScheduler
        self._scheduler = kind(
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


def make_scheduler(
    name: str,
    steps: int,
    prediction: Prediction,
    eta: float | None = None,
    first: int = TRAINING_STEPS - 1,
) -> Scheduler:
    """The sampler of that name, for one canvas; `eta` is DDIM's, 1 when None; `first` is the
    timestep that DDPM begins at. An unknown name raises InvalidOption too."""
    if name == "ddpm":
        return DDPM(steps, prediction, first)
    if name == "ddim":
        return DDIM(steps, prediction, 1.0 if eta is None else eta)
    if name in ("dpmpp", "unipc"):
        return Multistep(name, steps, prediction)
    raise InvalidOption(f"sampler is {name!r}, but must be one of ddpm, ddim, dpmpp, unipc.")
