"""Encode and decode in strips, and count beforehand what that takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import torch
from torch import Tensor

from models.config import AutoencoderConfig, CompactConfig
from models.networks.bundle import AnyAutoencoder, make_autoencoder
from models.networks.compact import HAAR_CHANNELS, CompactAutoencoder, haar, quarter
from models.strips.compact import run_compact_decoder, run_compact_encoder
from models.strips.cost import META, Cost, Counter
from models.strips.decoder import run_decoder
from models.strips.encoder import EncodedStrips, run_encoder
from models.strips.executor import Executor, TensorSource, Write
from models.strips.settings import Callbacks, StripConfig
from models.strips.store import FeatureMap, MapStore

__all__ = ["coding_cost", "decode", "encode"]


@torch.inference_mode()
def encode(
    autoencoder: AnyAutoencoder,
    image: Tensor,
    strips: StripConfig,
    *,
    device: torch.device,
    dtype: torch.dtype,
    features: bool = True,
    callbacks: Callbacks | None = None,
) -> EncodedStrips:
    """`autoencoder.encode`, in strips.

    Args:
        autoencoder: on `device`, in `dtype`.
        image: (1, 3, H, W) in [-1, 1], sides multiples of 8; on the host, read strip by strip.
        strips: size of the strips and where maps are kept.
        device: of the network.
        dtype: of the network and of the maps.
        features: whether the decoder's fusion will want them; they stay until `close()`.
        callbacks: told and asked between strips.

    Raises:
        ScratchFull: maps are kept on disk and it has no room.
        torch.OutOfMemoryError: there is no memory for strips of one row either.
    """
    config = autoencoder.config
    height, width = image.shape[2:]
    flops = coding_cost(config, height, width, strips, dtype, decode=False, fusion=features).flops
    moments = _room_for_moments(autoencoder, image, device)
    store = MapStore(strips.keep, device, dtype, strips.rows, strips.scratch)
    try:
        run = Executor(store, strips.rows, flops, callbacks or Callbacks())
        compact = isinstance(autoencoder, CompactAutoencoder)
        kept = _encoder_passes(autoencoder, strips)(
            run,
            image=TensorSource(image, device, dtype),
            features=features,
            write=_into(moments[:, HAAR_CHANNELS:] if compact else moments),
        )
    except BaseException:
        store.close()
        raise
    return EncodedStrips(moments, kept, store)


def _room_for_moments(autoencoder: AnyAutoencoder, image: Tensor, device: torch.device) -> Tensor:
    """Of the compact autoencoder with the channels in it that are the image itself."""
    config = autoencoder.config
    cells = [side // config.downscale for side in image.shape[2:]]
    if not isinstance(autoencoder, CompactAutoencoder):
        return torch.empty((1, 2 * config.latent_channels, *cells), device=device)
    moments = torch.empty((1, config.latent_channels, *cells), device=device)
    moments[:, :HAAR_CHANNELS] = haar(quarter(image))
    return moments


@torch.inference_mode()
def decode(
    autoencoder: AnyAutoencoder,
    latent: Tensor,
    features: Sequence[FeatureMap],
    fidelity: float,
    strips: StripConfig,
    *,
    device: torch.device,
    dtype: torch.dtype,
    free_features: bool = False,
    callbacks: Callbacks | None = None,
) -> Tensor:
    """`autoencoder.decode`, in strips.

    Args:
        autoencoder: on `device`, in `dtype`.
        latent: unscaled, (1, c, h, w), anywhere and of any dtype.
        features: of `encode`; without them it decodes plainly, as with fidelity 0.
        fidelity: weight of the fusion in [0, 1] (eq. 5).
        strips: size of the strips and where maps are kept.
        device: of the network.
        dtype: of the network and of the maps.
        free_features: free each as it is read for the last time, not with `EncodedStrips`.
        callbacks: told and asked between strips.

    Returns:
        (1, 3, 8h, 8w), float32 on the host, nominally in [-1, 1].

    Raises:
        ScratchFull: maps are kept on disk and it has no room.
        torch.OutOfMemoryError: there is no memory for strips of one row either.
    """
    wanted = features if fidelity > 0 and features else None
    config = autoencoder.config
    height, width = (config.downscale * side for side in latent.shape[2:])
    # Kept further away, memory was short: strips can shrink, the whole cannot.
    at_once = strips.rows >= height and strips.keep == "device"
    if isinstance(autoencoder, CompactAutoencoder) and at_once:
        image = _decoded_whole(autoencoder, latent, wanted, fidelity, device, dtype, callbacks)
        for feature in features if free_features else ():
            feature.free()
        return image
    callbacks = callbacks or Callbacks()
    flops = coding_cost(
        config, height, width, strips, dtype, decode=True, fusion=wanted is not None
    ).flops
    image = torch.empty((1, 3, height, width))
    with MapStore(strips.keep, device, dtype, strips.rows, strips.scratch) as store:
        run = Executor(store, strips.rows, flops, callbacks)
        _decoder_passes(autoencoder, strips)(
            run,
            latent=TensorSource(latent, device, dtype),
            features=wanted,
            fidelity=fidelity,
            free_features=free_features,
            write=_into(image),
        )
    # Fused upsamplers (`models.fusing`) have less arithmetic than was counted.
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
    if not decode:
        image = run.source(3, height, width)
        _encoder_passes(autoencoder, strips)(run, image=image, features=fusion, write=_nowhere)
        return run.cost
    features = [
        run.hold(channels, height // smaller, width // smaller)
        for channels, smaller in config.feature_widths
        if fusion
    ]
    _decoder_passes(autoencoder, strips)(
        run,
        latent=run.source(
            config.latent_channels, height // config.downscale, width // config.downscale
        ),
        features=features or None,
        fidelity=1.0,
        free_features=False,
        write=_nowhere,
    )
    return run.cost


@lru_cache
def _without_weights(config: AutoencoderConfig | CompactConfig) -> AnyAutoencoder:
    with META:
        return make_autoencoder(config)


def _encoder_passes(
    autoencoder: AnyAutoencoder, strips: StripConfig
) -> Callable[..., tuple[FeatureMap, ...]]:
    """`run_encoder` of this network."""
    if isinstance(autoencoder, CompactAutoencoder):
        return partial(run_compact_encoder, autoencoder=autoencoder)
    return partial(run_encoder, autoencoder=autoencoder, keys=strips.attention_keys)


def _decoder_passes(autoencoder: AnyAutoencoder, strips: StripConfig) -> Callable[..., None]:
    """`run_decoder` of this network."""
    if isinstance(autoencoder, CompactAutoencoder):
        return partial(run_compact_decoder, autoencoder=autoencoder)
    return partial(run_decoder, autoencoder=autoencoder, keys=strips.attention_keys)


def _decoded_whole(
    autoencoder: CompactAutoencoder,
    latent: Tensor,
    features: Sequence[FeatureMap] | None,
    fidelity: float,
    device: torch.device,
    dtype: torch.dtype,
    callbacks: Callbacks | None,
) -> Tensor:
    """A strip of full height needs no maps between passes, whose copies take time."""
    told = callbacks or Callbacks()
    told.check()
    seen = None if features is None else [x.read(0, x.height) for x in features]
    weight = torch.tensor(fidelity, device=device, dtype=dtype)
    laid = latent.to(device, dtype).contiguous(memory_format=torch.channels_last)
    image = autoencoder.decode(laid, seen, weight).float().cpu()
    told.progress(1.0)
    return image


def _into(whole: Tensor) -> Write:
    """Writes rows into a tensor (1, channels, height, width)."""

    def write(top: int, rows: Tensor) -> None:
        whole[:, :, top : top + rows.shape[2]] = rows

    return write


def _nowhere(top: int, rows: Tensor) -> None:
    """Nothing is computed, so nothing is written."""
