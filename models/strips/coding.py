"""Encode and decode in strips, and count beforehand what that takes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from types import ModuleType

import torch
from torch import Tensor

import models.strips.autoencoder as released
import models.strips.compact as compact
from models.config import AutoencoderConfig, CompactConfig
from models.networks.bundle import AnyAutoencoder, make_autoencoder
from models.networks.compact import HAAR_CHANNELS, CompactAutoencoder, haar, quarter
from models.strips.executor import META, Callbacks, Cost, Counter, Executor, TensorSource, Write
from models.strips.maps import FeatureMap, MapStore, StripConfig


class EncodedStrips:
    """The output of an encoder. Holds memory or files until it is closed."""

    def __init__(self, moments: Tensor, features: tuple[FeatureMap, ...], store: MapStore) -> None:
        self.moments = moments
        """As of `EncoderOutput`, float32 on the network's device."""
        self.features = features
        """As of `EncoderOutput`, or none."""
        self._store = store

    @property
    def nbytes(self) -> int:
        """Of the features."""
        return self._store.nbytes

    def close(self) -> None:
        """Frees the features; the moments stay."""
        self._store.close()

    def __enter__(self) -> EncodedStrips:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@torch.inference_mode()
def encode(
    autoencoder: AnyAutoencoder,
    image: Tensor,
    strips: StripConfig,
    *,
    features: bool = True,
    callbacks: Callbacks | None = None,
) -> EncodedStrips:
    """`autoencoder.encode`, in strips.

    Args:
        autoencoder: its device and dtype are those of the maps.
        image: (1, 3, H, W) in [-1, 1], sides multiples of 8; on the host, read strip by strip.
        strips: height of the strips and where maps are kept.
        features: whether the decoder's fusion will read them; they stay until `close()`.
        callbacks: called between strips.

    Raises:
        ScratchFull: maps are kept on disk and it has no room.
        torch.OutOfMemoryError: there is no memory for strips of one row either.
    """
    config, (device, dtype) = autoencoder.config, _place(autoencoder)
    height, width = image.shape[2:]
    cost = coding_cost(config, height, width, strips, dtype, decode=False, fusion=features)
    sides = height // config.downscale, width // config.downscale
    if isinstance(autoencoder, CompactAutoencoder):
        moments = torch.empty((1, config.latent_channels, *sides), device=device)
        moments[:, :HAAR_CHANNELS] = haar(quarter(image))
        free = moments[:, HAAR_CHANNELS:]
    else:
        free = moments = torch.empty((1, 2 * config.latent_channels, *sides), device=device)
    store = MapStore(strips, device, dtype)
    try:
        maps = _passes(autoencoder).run_encoder(
            Executor(store, cost.flops, callbacks or Callbacks()),
            autoencoder,
            TensorSource(image, device, dtype),
            features=features,
            write=_write_into(free),
        )
    except BaseException:
        store.close()
        raise
    return EncodedStrips(moments, maps, store)


@torch.inference_mode()
def decode(
    autoencoder: AnyAutoencoder,
    latent: Tensor,
    features: Sequence[FeatureMap],
    fidelity: float,
    strips: StripConfig,
    *,
    callbacks: Callbacks | None = None,
) -> Tensor:
    """`autoencoder.decode`, in strips.

    Args:
        autoencoder: its device and dtype are those of the maps.
        latent: unscaled, (1, c, h, w), anywhere and of any dtype.
        features: of `encode`; without them it decodes plainly, as with fidelity 0.
        fidelity: weight of the fusion in [0, 1] (eq. 5).
        strips: height of the strips and where maps are kept.
        callbacks: called between strips.

    Returns:
        (1, 3, 8h, 8w), float32 on the host, nominally in [-1, 1].

    Raises:
        ScratchFull: maps are kept on disk and it has no room.
        torch.OutOfMemoryError: there is no memory for strips of one row either.
    """
    maps = features if fidelity > 0 and features else None
    callbacks = callbacks or Callbacks()
    config, (device, dtype) = autoencoder.config, _place(autoencoder)
    height, width = (config.downscale * side for side in latent.shape[2:])
    # Kept further away, memory was short: strips can shrink, the whole cannot.
    if (
        isinstance(autoencoder, CompactAutoencoder)
        and strips.height >= height
        and strips.keep == "device"
    ):
        # A strip of full height needs no maps between passes, whose copies take time.
        callbacks.check()
        inputs = None if maps is None else [x.read(0, x.height) for x in maps]
        weight = None if fidelity == 1 else torch.tensor(fidelity, device=device, dtype=dtype)
        latent = latent.to(device, dtype).contiguous(memory_format=torch.channels_last)
        image = autoencoder.decode(latent, inputs, weight).float().cpu()
    else:
        cost = coding_cost(
            config, height, width, strips, dtype, decode=True, fusion=maps is not None
        )
        image = torch.empty((1, 3, height, width))
        with MapStore(strips, device, dtype) as store:
            _passes(autoencoder).run_decoder(
                Executor(store, cost.flops, callbacks),
                autoencoder,
                TensorSource(latent, device, dtype),
                maps,
                fidelity,
                write=_write_into(image),
            )
    callbacks.progress(1.0)
    return image


@lru_cache(maxsize=256)
def coding_cost(
    config: AutoencoderConfig | CompactConfig,
    height: int,
    width: int,
    strips: StripConfig,
    dtype: torch.dtype,
    *,
    decode: bool,
    fusion: bool,
) -> Cost:
    """Of encoding or decoding an image of these sides (px), with or without fusion.

    Its maps include the features, which fusion reads. The weights and the image itself are the
    caller's.
    """
    run, autoencoder = Counter(strips, dtype), _without_weights(config)
    passes = _passes(autoencoder)
    if not decode:
        image = run.source(3, height, width)
        passes.run_encoder(run, autoencoder, image, features=fusion, write=_write_nothing)
        return run.cost
    features = [
        run.hold(channels, height // smaller, width // smaller)
        for channels, smaller in config.feature_widths
        if fusion
    ]
    sides = height // config.downscale, width // config.downscale
    latent = run.source(config.latent_channels, *sides)
    passes.run_decoder(run, autoencoder, latent, features or None, 1.0, write=_write_nothing)
    return run.cost


@lru_cache
def _without_weights(config: AutoencoderConfig | CompactConfig) -> AnyAutoencoder:
    with META:
        return make_autoencoder(config)


def _passes(autoencoder: AnyAutoencoder) -> ModuleType:
    """Has `run_encoder` and `run_decoder` of this network."""
    return compact if isinstance(autoencoder, CompactAutoencoder) else released


def _place(autoencoder: AnyAutoencoder) -> tuple[torch.device, torch.dtype]:
    parameter = next(autoencoder.parameters())
    return parameter.device, parameter.dtype


def _write_into(whole: Tensor) -> Write:
    """Into a tensor (1, channels, height, width)."""

    def write(top: int, rows: Tensor) -> None:
        whole[:, :, top : top + rows.shape[2]] = rows

    return write


def _write_nothing(top: int, rows: Tensor) -> None:
    """Nothing is computed."""
