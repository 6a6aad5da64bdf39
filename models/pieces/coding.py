"""Encode and decode in pieces."""

from __future__ import annotations

import torch
from torch import Tensor

from models.folding.upsampling import upsamplers_folded
from models.networks.autoencoder import Autoencoder
from models.pieces.cost import decode_cost, encode_cost
from models.pieces.decoder import run_decoder
from models.pieces.encoder import EncodedPieces, TapMaps, run_encoder
from models.pieces.executor import Executor, TensorSource, Write
from models.pieces.settings import Callbacks, Pieces
from models.pieces.store import MapStore

__all__ = ["decode", "encode"]


@torch.inference_mode()
def encode(
    autoencoder: Autoencoder,
    image: Tensor,
    pieces: Pieces,
    *,
    device: torch.device,
    dtype: torch.dtype,
    taps: bool = True,
    callbacks: Callbacks | None = None,
) -> EncodedPieces:
    """`autoencoder.encode`, in pieces.

    Args:
        autoencoder: on `device`, in `dtype`.
        image: (1, 3, H, W) in [-1, 1], sides multiples of 8; on the host, read strip by strip.
        pieces: size of the strips and where maps are kept.
        device: of the network.
        dtype: of the network and of the maps.
        taps: whether the decoder's fusion will want them; they stay until `close()`.
        callbacks: told and asked between strips.

    Raises:
        ScratchFull: maps are kept on disk and it has no room.
        torch.OutOfMemoryError: there is no memory for strips of one row either.
    """
    config = autoencoder.config
    height, width = image.shape[2:]
    flops = encode_cost(config, height, width, pieces, dtype, taps=taps).flops
    cells = (height // config.downscale, width // config.downscale)
    moments = torch.empty((1, 2 * config.latent_channels, *cells), device=device)
    store = MapStore(pieces.keep, device, dtype, pieces.rows, pieces.scratch)
    try:
        run = Executor(store, pieces.rows, flops, callbacks or Callbacks())
        kept = run_encoder(
            run,
            autoencoder,
            TensorSource(image, device, dtype),
            pieces.attention_keys,
            taps=taps,
            write=_into(moments),
        )
    except BaseException:
        store.close()
        raise
    return EncodedPieces(moments, kept, store)


@torch.inference_mode()
def decode(
    autoencoder: Autoencoder,
    latent: Tensor,
    taps: TapMaps | None,
    fidelity: float,
    pieces: Pieces,
    *,
    device: torch.device,
    dtype: torch.dtype,
    free_taps: bool = False,
    callbacks: Callbacks | None = None,
) -> Tensor:
    """`autoencoder.decode`, in pieces.

    Args:
        autoencoder: on `device`, in `dtype`.
        latent: unscaled, (1, c, h, w), anywhere and of any dtype.
        taps: of `encode`; None decodes plainly, as fidelity 0 does.
        fidelity: weight of the fusion in [0, 1] (eq. 5).
        pieces: size of the strips and where maps are kept.
        device: of the network.
        dtype: of the network and of the maps.
        free_taps: free each tap as it is read for the last time, not with `EncodedPieces`.
        callbacks: told and asked between strips.

    Returns:
        (1, 3, 8h, 8w), float32 on the host, nominally in [-1, 1].

    Raises:
        ScratchFull: maps are kept on disk and it has no room.
        torch.OutOfMemoryError: there is no memory for strips of one row either.
    """
    taps = taps if fidelity > 0 else None
    config = autoencoder.config
    height, width = (config.downscale * side for side in latent.shape[2:])
    flops = decode_cost(
        config,
        height,
        width,
        pieces,
        dtype,
        fusion=taps is not None,
        free_taps=free_taps,
        folded=upsamplers_folded(autoencoder),
    ).flops
    image = torch.empty((1, 3, height, width))
    with MapStore(pieces.keep, device, dtype, pieces.rows, pieces.scratch) as store:
        run = Executor(store, pieces.rows, flops, callbacks or Callbacks())
        run_decoder(
            run,
            autoencoder,
            TensorSource(latent, device, dtype),
            pieces.attention_keys,
            taps,
            fidelity,
            free_taps=free_taps,
            write=_into(image),
        )
    return image


def _into(whole: Tensor) -> Write:
    """Writes rows into a tensor (1, channels, height, width)."""

    def write(top: int, rows: Tensor) -> None:
        whole[:, :, top : top + rows.shape[2]] = rows

    return write
