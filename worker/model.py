"""What the worker asks of a pipeline, so that its processes can be tested without weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from models.sampling import Sampler, StepRequest

if TYPE_CHECKING:
    from models.options import Options

__all__ = ["Upscaler"]


class Upscaler(Protocol):
    """A pipeline in its parts; `models.pipeline.StableSR` is the one there is.

    No method keeps anything between calls: several jobs go through one object at once.
    """

    def prepare(self, image: Tensor, options: Options) -> Any:
        """Upsample, pad and encode (1, 3, H, W) in [0, 1]; the result is handed back as it is."""

    def sample(self, prepared: Any, options: Options) -> Sampler:
        """The sampling loop, one yield a step. Closing the generator ends it."""

    def predict(self, requests: Sequence[StepRequest]) -> list[Tensor]:
        """One network call for all tiles of all requests; a (n, C, h, w) for each request."""

    def decode(self, prepared: Any, latent: Tensor, options: Options) -> Tensor:
        """The picture, (1, 3, round(scale * H), round(scale * W)) float32 in [0, 1] on the CPU."""
