"""Runs one sampler to its end, alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor

from models.parameters import UpscaleParameters
from models.pipeline import StableSR
from models.plan import EncodedImage
from models.sampling import Sampler, Step


def drive(sampler: Sampler, predict: Callable[[Step], Iterable[Tensor]]) -> Tensor:
    """The latent, where `predict` gives the prediction of each tile of a step."""
    try:
        step = next(sampler)
        while True:
            step = sampler.send(predict(step))
    except StopIteration as end:
        latent: Tensor = end.value
        return latent


def latent_of(sr: StableSR, image: EncodedImage, options: UpscaleParameters) -> Tensor:
    """Sampled with one network call a step."""
    return drive(sr.sample(image, options), lambda step: sr.predict([step.part(0, len(step))])[0])
