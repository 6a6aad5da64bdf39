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
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal, TypeVar

import torch
from torch import Tensor

from models.compiler import CompiledCalls, CompileOptions, Function
from models.memory import Fallbacks, MemoryBudget, places, until_it_fits
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

    Args:
        networks: whose autoencoder, and first stage where there is one.
        device: where they compute.
        fallbacks: noted where memory ran out.
        compiled_vae: for images of a single tile.
    """

    def __init__(
        self,
        networks: Networks,
        device: torch.device,
        fallbacks: Fallbacks,
        compiled_vae: CompiledVae,
    ) -> None:
        self._networks, self._device = networks, device
        self._fallbacks, self._compiled_vae = fallbacks, compiled_vae

    def encode(
        self,
        image: Tensor,
        strips: StripConfig,
        *,
        features: bool,
        on_progress: Callable[[float], None],
    ) -> tuple[Tensor, EncodedStrips, StripConfig]:
        """An image's scaled latent, what its decoding reads, and with which strips it went: maps
        are further away than planned where memory ran out.

        Args:
            image: (1, 3, H, W) in [-1, 1] on the host.
            strips: as planned.
            features: whether the decoder will read them.
            on_progress: called with the finished part, 0 to 1.
        """
        networks = self._networks
        share = 1.0 if networks.first_stage is None else 0.5

        def run(
            stage: _Stage, base: float, features: bool, strips: StripConfig
        ) -> tuple[EncodedStrips, StripConfig]:
            callbacks = self._callbacks(lambda fraction: on_progress(base + share * fraction))
            return self._spill(
                strips, lambda strips: self._encode(stage, image, strips, callbacks, features)
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

    def _encode(
        self,
        stage: _Stage,
        image: Tensor,
        strips: StripConfig,
        callbacks: Callbacks,
        features: bool,
    ) -> EncodedStrips:
        sides = image.shape[2], image.shape[3]
        encoding = self._whole(
            sides, strips, lambda: self._compiled_vae.encode(stage, image, features=features)
        )
        return encoding or encode(
            getattr(self._networks, stage),
            image,
            strips,
            features=features,
            callbacks=callbacks,
        )

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
        autoencoder = self._networks.autoencoder
        latent = autoencoder.unscale(latent)
        downscale = autoencoder.config.downscale
        sides = downscale * latent.shape[2], downscale * latent.shape[3]

        def run(strips: StripConfig) -> Tensor:
            image = self._whole(
                sides, strips, lambda: self._compiled_vae.decode(latent, features, fidelity)
            )
            if image is not None:
                return image
            return decode(
                autoencoder,
                latent,
                features,
                fidelity,
                strips,
                callbacks=self._callbacks(on_progress),
            )

        image, _ = self._spill(strips, run)
        return image

    def _whole(
        self, sides: tuple[int, int], strips: StripConfig, run: Callable[[], T | None]
    ) -> T | None:
        """What `run` gives; None where the image must go in strips."""
        if not self._compiled_vae.takes(*sides, strips):
            return None
        result, _ = until_it_fits(
            lambda whole: run() if whole else None,
            True,
            lambda whole: False if whole else None,
            lambda *_: self._fallbacks.note("image", "whole", "in strips"),
        )
        return result

    def _callbacks(self, on_progress: Callable[[float], None]) -> Callbacks:
        return Callbacks(progress=on_progress, on_shrink=partial(self._fallbacks.note, "rows"))

    def _spill(self, strips: StripConfig, run: Callable[[StripConfig], T]) -> tuple[T, StripConfig]:
        """What `run` gives, and with which strips it did."""

        def next_place(strips: StripConfig) -> StripConfig | None:
            disk = MemoryBudget(scratch=strips.scratch).free(self._device).disk
            return further(strips, self._device, disk)

        def note(before: StripConfig, after: StripConfig) -> None:
            self._fallbacks.note("keep", before.keep, after.keep)

        return until_it_fits(run, strips, next_place, note)


def further(strips: StripConfig, device: torch.device, disk: int) -> StripConfig | None:
    """The same with maps kept one place further away; None where there is none. `disk`: bytes that
    are free there."""
    nearest_first = places(device)
    beyond = nearest_first[nearest_first.index(strips.keep) + 1 :]
    if not beyond or (beyond[0] == "disk" and not disk):
        return None
    return replace(strips, keep=beyond[0])


class CompiledVae:
    """Encodes and decodes images of one size by compiled calls; several threads may.

    Args:
        networks: on the device.
        device: where they compute.
        compiled_calls: of the denoiser, so that their memory is shared.
        options: of compiling.
        side: px of these images, which are square.
        offload: whether the networks leave the device, which a compiled call does not survive.
    """

    def __init__(
        self,
        networks: Networks,
        device: torch.device,
        compiled_calls: CompiledCalls,
        options: CompileOptions,
        side: int,
        *,
        offload: bool,
    ) -> None:
        self._networks, self._device = networks, device
        self._compiled_calls, self._side = compiled_calls, side
        self.on = options.whole_images(device) and not offload
        """Whether calls are to be compiled"""
        self.eager_calls: Counter[str] = Counter()
        """That were to be compiled and were not: failure is the only reason."""
        self._encoders = {"autoencoder": _encode_function(networks.autoencoder)}
        if networks.first_stage is not None:
            self._encoders["first_stage"] = _encode_function(networks.first_stage)
        self._decode, self._fuse = _decode_functions(networks.autoencoder)
        if self.on:
            for name in self._encoders:
                channels_last(getattr(networks, name))

    def takes(self, height: int, width: int, strips: StripConfig) -> bool:
        """Whether images of these sides (px) go at once, where the plan would have such strips."""
        square = height == width == self._side
        return self.on and square and strips.height >= height and strips.keep == "device"

    def compilations(self) -> list[Callable[[], None]]:
        """What compiles all before it is needed; none where nothing is to be compiled."""
        return [self._compile] if self.on else []

    @torch.inference_mode()
    def _compile(self) -> None:
        start = time.monotonic()
        image = torch.zeros((1, 3, self._side, self._side))
        encoding = self.encode("autoencoder", image, features=True)
        if "first_stage" in self._encoders:
            self.encode("first_stage", image, features=False)
        if encoding is not None:
            with encoding:
                latent = torch.zeros_like(self._networks.autoencoder.latent(encoding.moments))
                self.decode(latent, (), 0.0)
                self.decode(latent, encoding.features, 1.0)
        log.info("images of %d px are ready after %.1f s", self._side, time.monotonic() - start)

    @torch.inference_mode()
    def encode(self, stage: _Stage, image: Tensor, *, features: bool) -> EncodedStrips | None:
        """(1, 3, H, W) in [-1, 1], anywhere -> as `models.strips.encode`; None where it cannot be
        compiled."""
        name = "encode_image" if stage == "autoencoder" else stage
        results = self._call(name, self._encoders[stage], image)
        if results is None:
            return None
        moments, *tensors = results
        dtype = self._networks.context.dtype
        store = MapStore(StripConfig(self._side), self._device, dtype)
        try:
            maps = tuple(_feature_map(store, tensor) for tensor in tensors) if features else ()
        except BaseException:
            store.close()
            raise
        return EncodedStrips(moments, maps, store)

    @torch.inference_mode()
    def decode(
        self, latent: Tensor, features: tuple[FeatureMap, ...], fidelity: float
    ) -> Tensor | None:
        """An unscaled latent -> (1, 3, H, W), float32 on the host; None where it cannot be
        compiled. `features` and `fidelity` as of `models.strips.decode`."""
        if not features or fidelity == 0:
            results = self._call("decode_image", self._decode, latent)
        else:
            tensors = [feature.read(0, feature.height) for feature in features]
            weight = torch.tensor([fidelity])
            results = self._call("fuse_image", self._fuse, latent, weight, *tensors)
        return None if results is None else results[0].cpu()

    def _call(self, name: str, function: Function, *arguments: Tensor) -> tuple[Tensor, ...] | None:
        dtype = self._networks.context.dtype
        results = self._compiled_calls(
            name, function, *(x.to(self._device, dtype) for x in arguments)
        )
        if results is None:
            self.eager_calls["failure"] += 1
        return results


def _feature_map(store: MapStore, feature: Tensor) -> FeatureMap:
    """A map that decoding in strips can read as well."""
    feature_map = store.new(*feature.shape[1:], with_statistics=True)
    feature_map.write(0, feature)
    return feature_map


def _encode_function(autoencoder: AnyAutoencoder) -> Function:
    def encode(image: Tensor) -> tuple[Tensor, ...]:
        moments, features = autoencoder.encode(image)
        return moments.float(), *features

    return encode


def _decode_functions(autoencoder: AnyAutoencoder) -> tuple[Function, Function]:
    """Plainly, and with the encoder's features fused in."""

    def decode(latent: Tensor) -> tuple[Tensor]:
        return (autoencoder.decode(latent).float(),)

    def fuse(latent: Tensor, weight: Tensor, *features: Tensor) -> tuple[Tensor]:
        return (autoencoder.decode(latent, features, weight).float(),)

    return decode, fuse
