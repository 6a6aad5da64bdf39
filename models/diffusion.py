"""The noise schedule, and the steps of the samplers DDPM and DDIM; `models.solvers` has the others.

1000 steps with scaled-linear betas as in Stable Diffusion. The coefficients are computed in
float64 on the host and enter the step as plain numbers, so a step never waits for the device.
DDPM: Ho et al., arXiv 2006.11239, eq. 6-7, respaced as in Nichol & Dhariwal, arXiv 2102.09672.
DDIM: Song et al., arXiv 2010.02502, eq. 12 and 16.
"""

from __future__ import annotations

import math
from typing import Protocol, get_args

import numpy as np
import numpy.typing as npt
from torch import Tensor

from models.config import Prediction
from models.errors import InvalidOption
from models.parameters import SamplerName

__all__ = [
    "DDIM",
    "DDPM",
    "TRAINING_STEPS",
    "Stepper",
    "add_noise",
    "alphas_cumprod",
    "check_steps",
    "make_stepper",
    "respaced_timesteps",
]

TRAINING_STEPS = 1000


def alphas_cumprod() -> npt.NDArray[np.float64]:
    """Cumulative signal fraction at each of the 1000 timesteps, float64."""
    betas = np.linspace(math.sqrt(0.00085), math.sqrt(0.0120), TRAINING_STEPS) ** 2
    return np.cumprod(1.0 - betas).astype(np.float64)


def respaced_timesteps(steps: int, first: int = TRAINING_STEPS - 1) -> list[int]:
    """`steps` timesteps of the full schedule, ascending from 0 to `first`, both included.

    Raises:
        InvalidOption: more steps than timesteps, or none.
    """
    check_steps(steps, first)
    if steps == 1:
        return [first]
    return [round(i * first / (steps - 1)) for i in range(steps)]


def check_steps(steps: int, first: int = TRAINING_STEPS - 1) -> None:
    """Raises InvalidOption for no steps, and for more than there are timesteps up to `first`."""
    if not 1 <= steps <= first + 1:
        raise InvalidOption(f"steps is {steps}, but must be between 1 and {first + 1}.")


def add_noise(latent: Tensor, noise: Tensor, timestep: int) -> Tensor:
    """The forward process at one timestep: sqrt(a) * latent + sqrt(1 - a) * noise."""
    a = float(alphas_cumprod()[timestep])
    return math.sqrt(a) * latent + math.sqrt(1 - a) * noise


class Stepper(Protocol):
    """One sampler's arithmetic: which timesteps, and what a prediction makes of the canvas.

    Some keep what earlier steps predicted, so a stepper serves one canvas, its steps in order.
    """

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
        kept = respaced_timesteps(steps, first)
        # The networks see ascending timesteps twice when several round to the same one: never,
        # since there are as many as steps.
        self.timesteps = kept[::-1]
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
        check_steps(steps)
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


def make_stepper(
    name: SamplerName,
    steps: int,
    prediction: Prediction,
    eta: float | None = None,
    first: int = TRAINING_STEPS - 1,
) -> Stepper:
    """The sampler of that name, for one canvas; `eta` is DDIM's, 1 when None; `first` is the
    timestep that DDPM begins at.

    Raises:
        InvalidOption: an unknown name, no steps, or more than there are timesteps.
    """
    if name == "ddpm":
        return DDPM(steps, prediction, first)
    if name == "ddim":
        return DDIM(steps, prediction, 1.0 if eta is None else eta)
    if name in get_args(SamplerName):
        # Here, because the solvers themselves stand on this module.
        from models.solvers import Multistep

        return Multistep(name, steps, prediction)
    known = ", ".join(get_args(SamplerName))
    raise InvalidOption(f"sampler is {name!r}, but must be one of {known}.")
