"""The autoencoder at work on one image: in strips, and further from the device where it must be."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from models.memory import MemoryBudget, until_it_fits
from models.networks.bundle import Networks
from models.plan import further
from models.strips import Callbacks, EncodedStrips, FeatureMap, Keep, StripConfig, decode, encode
from models.whole import Whole

__all__ = ["AutoencoderAtWork", "Changes", "Encoding"]

T = TypeVar("T")

log = logging.getLogger(__name__)


class Changes:
    """Counts how often a plan had to change because memory ran out, and says so in the log."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter()
        """By what was changed: tile_batch, rows, keep or image."""

    def note(self, what: str, before: object, after: object) -> None:
        with self._lock:
            self.counts[what] += 1
        log.warning("plan changed, out of memory: %s was %s and is %s now", what, before, after)


class Encoding:
    """An image's latent, and the features that its decoding reads. Close it to free these."""

    def __init__(self, latent: Tensor, encoded: EncodedStrips, keep: Keep) -> None:
        self.latent = latent
        """Scaled, float32 (1, c, h, w) on the device."""
        self.keep = keep
        """Where the features are; further away than planned where memory ran out."""
        self._encoded = encoded

    @property
    def features(self) -> tuple[FeatureMap, ...]:
        return self._encoded.features

    @property
    def held(self) -> int:
        """Bytes of the features that are not freed yet."""
        return self._encoded.nbytes

    def close(self) -> None:
        self._encoded.close()


class AutoencoderAtWork:
    """Encodes and decodes: images of a single tile at once where that is compiled, others in
    strips. These shrink when memory runs out; when the smallest does not help, feature maps move
    from the device to the host to the disk, and the work begins anew."""

    def __init__(
        self,
        networks: Networks,
        device: torch.device,
        changes: Changes,
        whole: Whole,
    ) -> None:
        self._networks, self._device = networks, device
        self._changes, self._whole = changes, whole

    def encode(
        self, image: Tensor, strips: StripConfig, *, features: bool, tell: Callable[[float], None]
    ) -> Encoding:
        """(1, 3, H, W) in [-1, 1] on the host; `tell` hears the fraction that is done."""
        networks, whole = self._networks, self._whole
        sides = image.shape[2], image.shape[3]
        share = 1.0 if networks.first_stage is None else 0.5

        def first(strips: StripConfig) -> EncodedStrips:
            made = self._at_once(sides, strips, lambda: whole.encode(image, features=features))
            if made is not None:
                return made
            return encode(
                networks.autoencoder,
                image,
                strips,
                features=features,
                callbacks=self._callbacks(lambda done: tell(share * done)),
            )

        def second(strips: StripConfig) -> Tensor:
            assert networks.first_stage is not None
            made = self._at_once(sides, strips, lambda: whole.moments(image))
            if made is not None:
                return made
            with encode(
                networks.first_stage,
                image,
                strips,
                features=False,
                callbacks=self._callbacks(lambda done: tell(share + share * done)),
            ) as encoded:
                return encoded.moments

        encoded, strips = self._spilling(strips, first)
        try:
            moments = encoded.moments
            if networks.first_stage is not None:
                # Features come from the CFW file's encoder, the latent from the diffusion file's.
                moments, _ = self._spilling(strips, second)
            return Encoding(networks.autoencoder.latent(moments), encoded, strips.keep)
        except BaseException:
            encoded.close()
            raise

    def decode(
        self,
        latent: Tensor,
        features: tuple[FeatureMap, ...],
        fidelity: float,
        strips: StripConfig,
        *,
        tell: Callable[[float], None],
    ) -> Tensor:
        """A scaled latent -> (1, 3, H, W) in [-1, 1] or so, float32 on the host."""
        config, whole = self._networks.config.autoencoder, self._whole
        unscaled = self._networks.autoencoder.unscale(latent)
        sides = config.downscale * latent.shape[2], config.downscale * latent.shape[3]

        def run(strips: StripConfig) -> Tensor:
            made = self._at_once(sides, strips, lambda: whole.decode(unscaled, features, fidelity))
            if made is not None:
                return made
            return decode(
                self._networks.autoencoder,
                unscaled,
                features,
                fidelity,
                strips,
                callbacks=self._callbacks(tell),
            )

        image, _ = self._spilling(strips, run)
        return image

    def _at_once(
        self, sides: tuple[int, int], strips: StripConfig, run: Callable[[], T | None]
    ) -> T | None:
        """What `run` gives; None where the image must go in strips."""
        if not self._whole.takes(*sides, strips):
            return None
        note = self._changes.note
        result, _ = until_it_fits(
            lambda whole: run() if whole else None,
            True,
            lambda whole: False if whole else None,
            lambda *_: note("image", "whole", "in strips"),
        )
        return result

    def _callbacks(self, tell: Callable[[float], None]) -> Callbacks:
        return Callbacks(progress=tell, on_shrink=partial(self._changes.note, "rows"))

    def _spilling(
        self, strips: StripConfig, run: Callable[[StripConfig], T]
    ) -> tuple[T, StripConfig]:
        """What `run` gives, and with which strips it did."""

        def next_place(strips: StripConfig) -> StripConfig | None:
            return further(strips, self._device, MemoryBudget(self._device, strips.scratch).free())

        def note(before: StripConfig, after: StripConfig) -> None:
            self._changes.note("keep", before.keep, after.keep)

        return until_it_fits(run, strips, next_place, note)
