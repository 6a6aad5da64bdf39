"""The VAE on one image: in strips, or by compiled calls where the image is a single tile.

Strips shrink when memory runs out; when the smallest does not help, feature maps move from the
device to the host to the disk, and the work begins anew.

In strips (`models.strips`) the host has much to launch beside the products: statistics of norms,
strips, copies. For an image of one tile a GPU would wait for that; as one graph it need not. The
arithmetic is the same, exact but for rounding. For larger images memory must be bounded, and
launches matter little.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal, TypeVar

import torch
from torch import Tensor

from models.compiler import CompiledCalls, CompileOptions, Function
from models.memory import Fallbacks, free_disk, places, until_it_fits
from models.networks.bundle import AnyAutoencoder, Networks, channels_last
from models.strips import (
    Callbacks,
    EncodedStrips,
    FeatureMap,
    MapStore,
    StripConfig,
    decode,
    encode,
)

T = TypeVar("T")
_Stage = Literal["autoencoder", "first_stage"]

log = logging.getLogger(__name__)


class Vae:
    """Encodes and decodes images; several threads may.

    `compiled_calls` are the denoiser's, so that their memory is shared. They are for images of a
    single tile, whose sides are `side` px, unless with `offload` the networks leave the device.
    """

    def __init__(
        self,
        networks: Networks,
        device: torch.device,
        fallbacks: Fallbacks,
        compiled_calls: CompiledCalls,
        options: CompileOptions,
        side: int,
        *,
        offload: bool,
    ) -> None:
        self._networks, self._device, self._fallbacks = networks, device, fallbacks
        self._compiled_calls, self._side = compiled_calls, side
        self._compiles = options.whole_images(device) and not offload
        decoder = _decode_function(networks.autoencoder)
        self._functions = {
            "encode_image": _encode_function(networks.autoencoder),
            "decode_image": decoder,
            "fuse_image": decoder,
        }
        if networks.first_stage is not None:
            self._functions["first_stage"] = _encode_function(networks.first_stage)
        for part in (networks.autoencoder, networks.first_stage):
            if self._compiles and part is not None:
                channels_last(part)

    def encode(
        self,
        image: Tensor,
        strips: StripConfig,
        *,
        features: bool,
        on_progress: Callable[[float], None],
    ) -> tuple[Tensor, EncodedStrips, StripConfig]:
        """Of an image (1, 3, H, W) in [-1, 1] on the host: its scaled latent, what its decoding
        reads, and with which strips it went: maps are further away than planned where memory ran
        out. `on_progress` is called with the finished part, 0 to 1."""
        networks = self._networks
        share = 1.0 if networks.first_stage is None else 0.5

        def run(
            stage: _Stage, base: float, features: bool, strips: StripConfig
        ) -> tuple[EncodedStrips, StripConfig]:
            callbacks = self._callbacks(lambda fraction: on_progress(base + share * fraction))
            return self._fit(
                (image.shape[2], image.shape[3]),
                strips,
                lambda: self._encode_whole(stage, image, features=features),
                lambda strips: encode(
                    getattr(networks, stage), image, strips, features=features, callbacks=callbacks
                ),
            )

        encoding, strips = run("autoencoder", 0.0, features, strips)
        try:
            moments = encoding.moments
            if networks.first_stage is not None:
                # Features come from the CFW file's encoder, the latent from the diffusion file's.
                first_stage, _ = run("first_stage", share, False, strips)
                first_stage.close()
                moments = first_stage.moments
            return networks.autoencoder.latent(moments), encoding, strips
        except BaseException:
            encoding.close()
            raise

    def decode(
        self,
        latent: Tensor,
        features: tuple[FeatureMap, ...],
        fidelity: float,
        strips: StripConfig,
        *,
        on_progress: Callable[[float], None],
    ) -> Tensor:
        """A scaled latent -> (1, 3, H, W) in [-1, 1] or so, float32 on the host."""
        autoencoder, callbacks = self._networks.autoencoder, self._callbacks(on_progress)
        latent = autoencoder.unscale(latent)
        downscale = autoencoder.config.downscale
        image, _ = self._fit(
            (downscale * latent.shape[2], downscale * latent.shape[3]),
            strips,
            lambda: self._decode_whole(latent, features, fidelity),
            lambda strips: decode(
                autoencoder, latent, features, fidelity, strips, callbacks=callbacks
            ),
        )
        return image

    def compilations(self) -> list[Callable[[], None]]:
        """What compiles all before it is needed; none where nothing is to be compiled."""
        return [self._compile] if self._compiles else []

    def _callbacks(self, on_progress: Callable[[float], None]) -> Callbacks:
        return Callbacks(progress=on_progress, on_shrink=partial(self._fallbacks.note, "rows"))

    def _fit(
        self,
        sides: tuple[int, int],
        strips: StripConfig,
        whole: Callable[[], T | None],
        in_strips: Callable[[StripConfig], T],
    ) -> tuple[T, StripConfig]:
        """The result for an image of these sides (px), and with which strips it went: at once
        where it is a single tile that the plan has room for, else in strips."""

        def run(strips: StripConfig) -> T:
            roomy = strips.height >= self._side and strips.keep == "device"
            if self._compiles and roomy and sides == (self._side, self._side):
                result, _ = until_it_fits(
                    lambda at_once: whole() if at_once else None,
                    True,
                    lambda at_once: False if at_once else None,
                    lambda *_: self._fallbacks.note("image", "whole", "in strips"),
                )
                if result is not None:
                    return result
            return in_strips(strips)

        return until_it_fits(
            run,
            strips,
            lambda strips: further(strips, self._device),
            lambda before, after: self._fallbacks.note("keep", before.keep, after.keep),
        )

    @torch.inference_mode()
    def _compile(self) -> None:
        start = time.monotonic()
        image = torch.zeros((1, 3, self._side, self._side))
        encoding = self._encode_whole("autoencoder", image, features=True)
        if self._networks.first_stage is not None:
            self._encode_whole("first_stage", image, features=False)
        if encoding is not None:
            with encoding:
                latent = torch.zeros_like(self._networks.autoencoder.latent(encoding.moments))
                self._decode_whole(latent, (), 0.0)
                self._decode_whole(latent, encoding.features, 1.0)
        log.info("images of %d px are ready after %.1f s", self._side, time.monotonic() - start)

    @torch.inference_mode()
    def _encode_whole(
        self, stage: _Stage, image: Tensor, *, features: bool
    ) -> EncodedStrips | None:
        """As `models.strips.encode`; None where it cannot be compiled."""
        name = "encode_image" if stage == "autoencoder" else stage
        results = self._call(name, image)
        if results is None:
            return None
        moments, *tensors = results
        store = MapStore(StripConfig(self._side), self._device, self._networks.context.dtype)
        maps: list[FeatureMap] = []
        try:
            for tensor in tensors if features else ():
                # Decoding in strips can read it as well.
                maps.append(store.new(*tensor.shape[1:], with_statistics=True))
                maps[-1].write(0, tensor)
        except BaseException:
            store.close()
            raise
        return EncodedStrips(moments, tuple(maps), store)

    @torch.inference_mode()
    def _decode_whole(
        self, latent: Tensor, features: tuple[FeatureMap, ...], fidelity: float
    ) -> Tensor | None:
        """As `models.strips.decode`; None where it cannot be compiled."""
        if not features or fidelity == 0:
            results = self._call("decode_image", latent)
        else:
            tensors = [feature.read(0, feature.height) for feature in features]
            weight = torch.tensor([fidelity])
            results = self._call("fuse_image", latent, weight, *tensors)
        return None if results is None else results[0].cpu()

    def _call(self, name: str, *arguments: Tensor) -> tuple[Tensor, ...] | None:
        dtype, function = self._networks.context.dtype, self._functions[name]
        tensors = (x.to(self._device, dtype) for x in arguments)
        results = self._compiled_calls(name, function, *tensors)
        if results is None:
            self._fallbacks.add("eager_failure")
        return results


def further(strips: StripConfig, device: torch.device) -> StripConfig | None:
    """The same with maps kept one place further away; None where there is none, or no room."""
    nearest_first = places(device)
    beyond = nearest_first[nearest_first.index(strips.keep) + 1 :]
    if not beyond or (beyond[0] == "disk" and not free_disk()):
        return None
    return replace(strips, keep=beyond[0])


def _encode_function(autoencoder: AnyAutoencoder) -> Function:
    def encode(image: Tensor) -> tuple[Tensor, ...]:
        moments, features = autoencoder.encode(image)
        return moments.float(), *features

    return encode


def _decode_function(autoencoder: AnyAutoencoder) -> Function:
    """With a weight and the encoder's features these are fused in."""

    def decode(latent: Tensor, weight: Tensor | None = None, *features: Tensor) -> tuple[Tensor]:
        return (autoencoder.decode(latent, features or None, weight).float(),)

    return decode
