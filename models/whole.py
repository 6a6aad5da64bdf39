"""Images of a single tile through the autoencoder at once, by compiled callables.

In strips (`models.strips`) the host has much to launch beside the products: statistics of norms,
strips, copies. For an image as small as this a GPU would wait for that; as one graph it need not.
The same arithmetic, so exact but for rounding. Larger images go in strips, where memory is bounded
and launches matter little.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

from models.compiler import CompiledCalls, CompileOptions, Function
from models.networks.bundle import AnyAutoencoder, Networks, channels_last
from models.strips import EncodedStrips, FeatureMap, MapStore, StripConfig

__all__ = ["Whole"]

log = logging.getLogger(__name__)


class Whole:
    """Encodes and decodes images of one size; several threads may.

    Args:
        networks: on the device.
        device: where they compute.
        compiled_calls: of the denoiser, so that their memory is shared.
        options: of compiling.
        side: px of these images, which are square.
        offloaded: whether the networks leave the device, which a compiled call does not survive.
    """

    def __init__(
        self,
        networks: Networks,
        device: torch.device,
        compiled_calls: CompiledCalls,
        options: CompileOptions,
        side: int,
        *,
        offloaded: bool,
    ) -> None:
        self._device, self._dtype = device, networks.context.dtype
        self._compiled_calls, self._side = compiled_calls, side
        self.compiled = options.whole_images(device) and not offloaded
        """Whether calls are to be compiled"""
        self.eager_calls: Counter[str] = Counter()
        """That were to be compiled and were not: failure is the only reason."""
        autoencoder, first_stage = networks.autoencoder, networks.first_stage
        self._autoencoder = autoencoder
        self._encode = _encoding(autoencoder)
        self._first = None if first_stage is None else _encoding(first_stage)
        self._decode, self._fuse = _decoding(autoencoder)
        if self.compiled:
            for part in (autoencoder, first_stage):
                if part is not None:
                    channels_last(part)

    def takes(self, height: int, width: int, strips: StripConfig) -> bool:
        """Whether images of these sides (px) go at once, where the plan would have such strips."""
        if not self.compiled:
            return False
        square = height == width == self._side
        return square and strips.height >= height and strips.keep == "device"

    def compilations(self) -> list[Callable[[], None]]:
        """What compiles all before it is needed; none where nothing is to be compiled."""
        return [self._compile] if self.compiled else []

    @torch.inference_mode()
    def _compile(self) -> None:
        began = time.monotonic()
        image = torch.zeros((1, 3, self._side, self._side))
        encoded = self.encode(image, features=True)
        if self._first is not None:
            self.moments(image)
        if encoded is not None:
            with encoded:
                latent = torch.zeros_like(self._autoencoder.latent(encoded.moments))
                self.decode(latent, (), 0.0)
                self.decode(latent, encoded.features, 1.0)
        log.info("images of %d px are ready after %.1f s", self._side, time.monotonic() - began)

    @torch.inference_mode()
    def encode(self, image: Tensor, *, features: bool) -> EncodedStrips | None:
        """(1, 3, H, W) in [-1, 1], anywhere -> as `models.strips.encode`; None where it cannot be
        compiled."""
        made = self._results("encode_image", self._encode, image)
        if made is None:
            return None
        moments, *seen = made
        store = MapStore(StripConfig(self._side), self._device, self._dtype)
        try:
            maps = tuple(_kept(store, feature) for feature in seen) if features else ()
        except BaseException:
            store.close()
            raise
        return EncodedStrips(moments, maps, store)

    def moments(self, image: Tensor) -> Tensor | None:
        """The first stage's, float32 (1, 2 c, h, w); None where it cannot be compiled."""
        assert self._first is not None, "there is no first stage"
        made = self._results("first_stage", self._first, image)
        return None if made is None else made[0]

    @torch.inference_mode()
    def decode(
        self, latent: Tensor, features: tuple[FeatureMap, ...], fidelity: float
    ) -> Tensor | None:
        """An unscaled latent -> (1, 3, H, W), float32 on the host; None where it cannot be
        compiled. `features` and `fidelity` as of `models.strips.decode`."""
        if not features or fidelity == 0:
            made = self._results("decode_image", self._decode, latent)
        else:
            seen = [feature.read(0, feature.height) for feature in features]
            weight = torch.tensor([fidelity])
            made = self._results("fuse_image", self._fuse, latent, weight, *seen)
        return None if made is None else made[0].cpu()

    @torch.inference_mode()
    def _results(
        self, name: str, function: Function, *arguments: Tensor
    ) -> tuple[Tensor, ...] | None:
        results = self._compiled_calls(
            name, function, *(x.to(self._device, self._dtype) for x in arguments)
        )
        if results is None:
            self.eager_calls["failure"] += 1
        return results


def _kept(store: MapStore, feature: Tensor) -> FeatureMap:
    """A map that decoding in strips can read as well."""
    made = store.new(*feature.shape[1:], with_statistics=True)
    made.write(0, feature)
    return made


def _encoding(autoencoder: AnyAutoencoder) -> Function:
    def encode(image: Tensor) -> tuple[Tensor, ...]:
        moments, features = autoencoder.encode(image)
        return moments.float(), *features

    return encode


def _decoding(autoencoder: AnyAutoencoder) -> tuple[Function, Function]:
    """Plainly, and with the encoder's features fused in."""

    def decode(latent: Tensor) -> tuple[Tensor]:
        return (autoencoder.decode(latent).float(),)

    def fuse(latent: Tensor, weight: Tensor, *features: Tensor) -> tuple[Tensor]:
        return (autoencoder.decode(latent, features, weight).float(),)

    return decode, fuse
