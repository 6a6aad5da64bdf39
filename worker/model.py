"""What the worker asks of a pipeline, so that its processes can be tested without weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from models.sampling import Sampler, StepRequest

if TYPE_CHECKING:
    from models.parameters import UpscaleParameters

__all__ = ["PreparedImage", "Upscaler"]


class PreparedImage(Protocol):
    """An image between its encoding and its decoding; holds memory or files until it is closed."""

    @property
    def summary(self) -> Mapping[str, object]:
        """How it is to go through the memory there is, for the log."""

    def close(self) -> None:
        """Frees what only the decoder would read; may be called again."""


class Upscaler(Protocol):
    """A pipeline in its parts; `models.pipeline.StableSR` is the one there is.

    No method keeps anything between calls: several jobs go through one object at once.
    """

    @property
    def tile_batch(self) -> int:
        """Tiles that a network call has room for."""

    @property
    def offload(self) -> bool:
        """Whether autoencoder and denoiser take turns on the device."""

    @property
    def departures(self) -> Mapping[str, int]:
        """How often it has gone another way than planned since it was loaded, by what: strips or
        calls made smaller, maps kept further away, calls not compiled."""

    def steps_in(self, image: Tensor, options: UpscaleParameters) -> bool:
        """Whether an image (1, 3, H, W) is small enough to be prepared and decoded between the
        strips of a larger one, where `tell` is called."""

    # Any: what it returns is handed back as it is, to methods that know more of it.
    def prepare(
        self, image: Tensor, options: UpscaleParameters, tell: Callable[[float], None]
    ) -> Any:
        """Upsample, pad and encode (1, 3, H, W) in [0, 1]; a PreparedImage.

        `tell` hears now and then which fraction is done, and may raise to end it.
        """

    def sample(self, prepared: Any, options: UpscaleParameters) -> Sampler:
        """The sampling loop, one yield a step. Closing the generator ends it."""

    def predict(self, requests: Sequence[StepRequest]) -> list[Tensor]:
        """One network call for all tiles of all requests; a (n, C, h, w) for each request."""

    def rows(
        self,
        prepared: Any,
        latent: Tensor,
        options: UpscaleParameters,
        tell: Callable[[float], None],
    ) -> Iterator[Tensor]:
        """The picture, decoded when this returns: (3, n, round(scale * W)) float32 in [0, 1] on
        the CPU, from top to bottom, together round(scale * H) rows. `tell` as in `prepare`."""
