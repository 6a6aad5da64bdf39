"""The autoencoder at work on one image: in pieces, and further from the device where it must be."""

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
from models.pieces import Callbacks, EncodedPieces, Keep, Pieces, decode, encode
from models.pieces.store import FeatureMap
from models.plan import further
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

    def __init__(self, latent: Tensor, encoded: EncodedPieces, keep: Keep) -> None:
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
        return self._encoded.held

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
        dtype: torch.dtype,
        changes: Changes,
        whole: Whole,
    ) -> None:
        self._networks, self._device, self._dtype = networks, device, dtype
        self._changes, self._whole = changes, whole

    def encode(
        self, image: Tensor, pieces: Pieces, *, features: bool, tell: Callable[[float], None]
    ) -> Encoding:
        """(1, 3, H, W) in [-1, 1] on the host; `tell` hears the fraction that is done."""
        networks, whole = self._networks, self._whole
        sides = image.shape[2], image.shape[3]
        share = 1.0 if networks.first_stage is None else 0.5

        def first(pieces: Pieces) -> EncodedPieces:
            made = self._at_once(sides, pieces, lambda: whole.encode(image, features=features))
            if made is not None:
                return made
            return encode(
                networks.autoencoder,
                image,
                pieces,
                device=self._device,
                dtype=self._dtype,
                features=features,
                callbacks=self._callbacks(lambda done: tell(share * done)),
            )

        def second(pieces: Pieces) -> Tensor:
            assert networks.first_stage is not None
            made = self._at_once(sides, pieces, lambda: whole.moments(image))
            if made is not None:
                return made
            with encode(
                networks.first_stage,
                image,
                pieces,
                device=self._device,
                dtype=self._dtype,
                features=False,
                callbacks=self._callbacks(lambda done: tell(share + share * done)),
            ) as encoded:
                return encoded.moments

        encoded, pieces = self._spilling(pieces, first)
        try:
            moments = encoded.moments
            if networks.first_stage is not None:
                # Features come from the CFW file's encoder, the latent from the diffusion file's.
                moments, _ = self._spilling(pieces, second)
            return Encoding(networks.autoencoder.latent(moments), encoded, pieces.keep)
        except BaseException:
            encoded.close()
            raise

    def decode(
        self,
        latent: Tensor,
        features: tuple[FeatureMap, ...],
        fidelity: float,
        pieces: Pieces,
        *,
        tell: Callable[[float], None],
    ) -> Tensor:
        """A scaled latent -> (1, 3, H, W) in [-1, 1] or so, float32 on the host."""
        config, whole = self._networks.config.autoencoder, self._whole
        unscaled = self._networks.autoencoder.unscaled(latent)
        sides = config.downscale * latent.shape[2], config.downscale * latent.shape[3]

        def run(pieces: Pieces) -> Tensor:
            made = self._at_once(sides, pieces, lambda: whole.decode(unscaled, features, fidelity))
            if made is not None:
                return made
            return decode(
                self._networks.autoencoder,
                unscaled,
                features,
                fidelity,
                pieces,
                device=self._device,
                dtype=self._dtype,
                callbacks=self._callbacks(tell),
            )

        image, _ = self._spilling(pieces, run)
        return image

    def _at_once(
        self, sides: tuple[int, int], pieces: Pieces, run: Callable[[], T | None]
    ) -> T | None:
        """What `run` gives; None where the image must go in strips."""
        if not self._whole.takes(*sides, pieces):
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

    def _spilling(self, pieces: Pieces, run: Callable[[Pieces], T]) -> tuple[T, Pieces]:
        """What `run` gives, and with which pieces it did."""

        def next_place(pieces: Pieces) -> Pieces | None:
            return further(pieces, self._device, MemoryBudget(self._device, pieces.scratch).free())

        def note(before: Pieces, after: Pieces) -> None:
            self._changes.note("keep", before.keep, after.keep)

        return until_it_fits(run, pieces, next_place, note)
