"""What encoding and decoding in pieces take: arithmetic and memory, without running them.

The same passes are gone through on networks without weights ("meta" tensors) by an executor that
counts instead of computing, so a figure cannot drift from what is run.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from models.config import AutoencoderConfig, CompactConfig
from models.folding.upsampling import fold_upsamplers
from models.networks.bundle import AnyAutoencoder, make_autoencoder
from models.networks.compact import CompactAutoencoder
from models.pieces.compact import run_compact_decoder, run_compact_encoder
from models.pieces.decoder import run_decoder
from models.pieces.encoder import run_encoder
from models.pieces.executor import Executor, Pass, TensorSource, Write
from models.pieces.settings import Callbacks, Memory, Pieces
from models.pieces.statistics import GPU_CHUNK
from models.pieces.store import FeatureMap, MapStore

__all__ = ["Cost", "decode_cost", "encode_cost", "flops", "peak_bytes"]

_META = torch.device("meta")
_Config = AutoencoderConfig | CompactConfig


@dataclass(frozen=True)
class Cost:
    """Of one encoding or decoding."""

    flops: int
    """A product and a sum are two. Rows that halos compute twice are not counted."""
    maps: int
    """Bytes of the feature maps that are held at once, at most."""
    working: int
    """Bytes of strips and what layers make of them, at most; on the device."""


class _Rehearsal(Executor):
    """Counts what passes take."""

    def __init__(self, pieces: Pieces, dtype: torch.dtype) -> None:
        store = MapStore("device", _META, dtype, pieces.rows, None)
        super().__init__(store, pieces.rows, 0, Callbacks())
        self.flops = self.held = self.working = 0
        self._live: list[FeatureMap] = []

    def hold(self, channels: int, height: int, width: int) -> FeatureMap:
        """A map that stays until a pass reads it for the last time."""
        made = self.store.new(channels, height, width, normalized=True)
        made.rehearse()
        self._live.append(made)
        return made

    def maps(self, step: Pass) -> list[FeatureMap]:
        before = sum(x.nbytes for x in self._live)
        made = [self.hold(r.channels, step.height, step.width) for r in step.results]
        freed = [r.source for r in step.reads if r.last and isinstance(r.source, FeatureMap)]
        for x in freed:
            self._live.remove(x)
        # The results take the place of what is freed, by and by and a block at a time.
        ends = max(before, sum(x.nbytes for x in self._live))
        exchanging = ends + sum(x.block_bytes for x in (*made, *freed))
        both = before + sum(x.nbytes for x in made)
        self.held = max(self.held, min(exchanging, both))
        self._count(step)
        return made

    def emit(self, step: Pass, write: Write) -> None:
        self._count(step)

    def _count(self, step: Pass) -> None:
        self.flops += step.flops
        rows = min(max(1, self.rows // step.coarsest), step.height)
        cells = rows * step.width
        elements = min(rows + 2 * step.halo, step.height) * step.width * step.temporaries
        for read in step.reads:
            source = read.source
            strip = min(-(-rows * read.stride // 1) + 2 * read.halo, source.height)
            elements += strip * source.width * source.channels
        # Statistics are taken in float32, of no more than a chunk at once.
        widened = (
            min(cells * max(r.channels for r in step.results), GPU_CHUNK) * torch.float32.itemsize
        )
        working = elements * self.store.itemsize + widened + step.resident
        self.working = max(self.working, working)

    @property
    def cost(self) -> Cost:
        return Cost(self.flops, self.held, self.working)


@lru_cache
def _autoencoder(config: _Config, *, folded: bool = False) -> AnyAutoencoder:
    with _META:
        made = make_autoencoder(config)
    if folded:
        fold_upsamplers(made)
    return made


@lru_cache(maxsize=256)
def encode_cost(
    config: _Config,
    height: int,
    width: int,
    pieces: Pieces,
    dtype: torch.dtype,
    *,
    features: bool,
) -> Cost:
    """Of `encode`; sides in px. The features count as maps."""
    run = _Rehearsal(pieces, dtype)
    image = TensorSource(torch.empty((1, 3, height, width), device=_META), _META, dtype)
    autoencoder = _autoencoder(config)
    if isinstance(autoencoder, CompactAutoencoder):
        run_compact_encoder(run, autoencoder, image, features=features, write=_nowhere)
    else:
        keys = pieces.attention_keys
        run_encoder(run, autoencoder, image, keys, features=features, write=_nowhere)
    return run.cost


@lru_cache(maxsize=256)
def decode_cost(
    config: _Config,
    height: int,
    width: int,
    pieces: Pieces,
    dtype: torch.dtype,
    *,
    fusion: bool,
    free_features: bool = False,
    folded: bool = False,
) -> Cost:
    """Of `decode`; sides of the image in px. The features count as maps while they are there.

    `folded`: whether the upsamplers are (`models.folding`). That takes less arithmetic, and no more
    memory.
    """
    run = _Rehearsal(pieces, dtype)
    features = None
    if fusion:
        features = [
            run.hold(channels, height // smaller, width // smaller)
            for channels, smaller in config.feature_widths
        ]
    shape = (1, config.latent_channels, height // config.downscale, width // config.downscale)
    latent = TensorSource(torch.empty(shape, device=_META), _META, dtype)
    autoencoder = _autoencoder(config, folded=folded)
    if isinstance(autoencoder, CompactAutoencoder):
        run_compact_decoder(
            run, autoencoder, latent, features, 1.0, free_features=free_features, write=_nowhere
        )
    else:
        run_decoder(
            run,
            autoencoder,
            latent,
            pieces.attention_keys,
            features,
            1.0,
            free_features=free_features,
            write=_nowhere,
        )
    return run.cost


def flops(
    config: _Config,
    height: int,
    width: int,
    pieces: Pieces,
    *,
    decode: bool,
    fusion: bool,
) -> int:
    """Of encoding or decoding an image of these sides (px), with or without fusion."""
    return _cost(config, height, width, pieces, torch.float32, decode=decode, fusion=fusion).flops


def peak_bytes(
    config: _Config,
    height: int,
    width: int,
    pieces: Pieces,
    dtype: torch.dtype,
    *,
    decode: bool,
    fusion: bool,
    free_features: bool = False,
) -> Memory:
    """Held at most while an image of these sides (px) is encoded or decoded.

    Includes the features, where there is fusion, and the decoded image. The weights and the image
    that is encoded are the caller's. Where the device is the processor, add device and host.
    """
    cost = _cost(
        config,
        height,
        width,
        pieces,
        dtype,
        decode=decode,
        fusion=fusion,
        free_features=free_features,
    )
    image = 3 * height * width * torch.float32.itemsize if decode else 0
    if pieces.keep == "device":
        return Memory(cost.maps + cost.working, image, 0)
    if pieces.keep == "host":
        return Memory(cost.working, cost.maps + image, 0)
    return Memory(cost.working, image, cost.maps)


def _cost(
    config: _Config,
    height: int,
    width: int,
    pieces: Pieces,
    dtype: torch.dtype,
    *,
    decode: bool,
    fusion: bool,
    free_features: bool = False,
) -> Cost:
    if decode:
        return decode_cost(
            config, height, width, pieces, dtype, fusion=fusion, free_features=free_features
        )
    return encode_cost(config, height, width, pieces, dtype, features=fusion)


def _nowhere(top: int, rows: Tensor) -> None:
    """Nothing is computed, so nothing is written."""
