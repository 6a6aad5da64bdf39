"""What a person gives to be converted: which file is which, and where each of our tensors lies.

A diffusion file is either whole, as released, or holds StableSR alone: the time-aware encoder and
the modulation, as in webui_768v_139.safetensors. The size of that file is, to the byte, that of
those 376 tensors in float32 under the names of the whole file, so these names are taken; a common
prefix before them is cut off. Such a file needs a base, which is Stable Diffusion 2.1 as a folder
of diffusers or as one file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from models.checkpoints.diffusers_folder import DiffusersFolder, is_diffusers_folder
from models.checkpoints.files import open_checkpoint
from models.checkpoints.inventory import autoencoder_config, config_of, encoder_config, size
from models.checkpoints.keys import Entry, autoencoder_entries, diffusion_entries
from models.checkpoints.pieces import Piece, build_on_meta, dropped_names, released_pieces
from models.checkpoints.stored import Checkpoint
from models.config import ModelConfig, Prediction
from models.errors import CheckpointMismatch, CheckpointUnreadable

__all__ = ["Opened", "Sources", "open_sources"]

_UNET, _ENCODER, _MODULATION = "model.diffusion_model.", "structcond_stage_model.", ".spade."

Kind = Literal["whole", "guidance", "base", "autoencoder", "plain autoencoder", "unknown"]

_KINDS: Mapping[Kind, str] = {
    "whole": "a StableSR diffusion file",
    "guidance": "StableSR's encoder and modulation without a base",
    "base": "a Stable Diffusion file without StableSR's encoder and modulation",
    "autoencoder": "the autoencoder (CFW) file",
    "plain autoencoder": "an autoencoder without the fusion layers of CFW",
    "unknown": "no part of StableSR",
}


@dataclass(frozen=True)
class Sources:
    """Files to convert."""

    diffusion: Path
    autoencoder: Path
    base: Path | None = None
    """Stable Diffusion 2.1, a folder or a file, for a diffusion file that needs it."""


@dataclass(frozen=True)
class Opened:
    """Sources whose tensors have been found, every one."""

    config: ModelConfig
    pieces: Mapping[str, Piece]
    """By our names: unet, encoder, autoencoder, first_stage and, where there is one, text."""
    files: tuple[Path, ...]
    dropped: Mapping[str, int]
    """How many tensors were left out, by what they are."""
    foreign: tuple[str, ...]
    """Names of classes and functions in the files that have nothing to do with tensors."""


def open_sources(sources: Sources, prediction: Prediction) -> Opened:
    """Finds every tensor of the networks in the files; reads headers only.

    Raises:
        CheckpointUnreadable: a file is missing, damaged or no checkpoint.
        CheckpointMismatch: a file is not what it was given as, or has tensors that are missing,
            left over or of the wrong shape, by name.
    """
    diffusion = _unprefixed(open_checkpoint(sources.diffusion))
    autoencoder = open_checkpoint(sources.autoencoder)
    _check_roles(diffusion, autoencoder, sources.base)
    base = None if sources.base is None else _open_base(sources.base)
    if isinstance(base, DiffusersFolder):
        base.check_prediction(prediction)
    try:
        config = _config(diffusion, base, autoencoder, prediction)
        ours = build_on_meta(config)
    except CheckpointMismatch as error:
        raise CheckpointMismatch(
            f"{diffusion.path} and {autoencoder.path} do not make up a StableSR: {error}"
        ) from error

    entries, heads = diffusion_entries(config), config.encoder.heads
    if base is None:
        pieces = released_pieces(diffusion, entries, ours, heads)
    else:
        alone = [entry for entry in entries if _is_guidance(entry)]
        rest = [entry for entry in entries if not _is_guidance(entry)]
        pieces = released_pieces(diffusion, alone, ours, heads)
        if isinstance(base, DiffusersFolder):
            pieces |= base.pieces(ours)
        else:
            pieces |= released_pieces(base, rest, ours, heads)
    wrapped = list(autoencoder_entries(config.released_autoencoder))
    pieces |= released_pieces(autoencoder, wrapped, ours, heads)

    read = [diffusion, autoencoder, *([base] if isinstance(base, Checkpoint) else [])]
    dropped = Counter(
        what for part in read for what, names in dropped_names(part).items() for _ in names
    )
    return Opened(
        config,
        pieces,
        tuple(file for part in (diffusion, base, autoencoder) if part for file in part.files),
        dict(dropped),
        tuple(sorted({name for part in read for name in part.foreign})),
    )


def _is_guidance(entry: Entry) -> bool:
    return entry.released.startswith(_ENCODER) or _MODULATION in entry.released


def _config(
    diffusion: Checkpoint,
    base: Checkpoint | DiffusersFolder | None,
    autoencoder: Checkpoint,
    prediction: Prediction,
) -> ModelConfig:
    """Sizes of the networks. Raises CheckpointMismatch."""
    shapes = diffusion.shapes
    if not isinstance(base, DiffusersFolder):
        whole = shapes if base is None else {**base.shapes, **shapes}
        return config_of(whole, autoencoder.shapes, prediction)
    shared = f"{_UNET}input_blocks.1.0{_MODULATION}mlp_shared.0.weight"
    text = base.text_config()
    return ModelConfig(
        unet=base.unet_config(size(shapes, shared, 1), size(shapes, shared)),
        encoder=encoder_config(shapes),
        autoencoder=autoencoder_config(autoencoder.shapes),
        text=text,
        prediction=prediction,
        context_tokens=77 if text is None else text.tokens,
    )


def _kind(checkpoint: Checkpoint) -> Kind:
    names = checkpoint.tensors.keys()
    encoder = any(name.startswith(_ENCODER) for name in names)
    unet = any(name.startswith(_UNET) and _MODULATION not in name for name in names)
    if encoder or unet:
        return "guidance" if not unet else "whole" if encoder else "base"
    if any(name.startswith("decoder.fusion_layer_") for name in names):
        return "autoencoder"
    if any(name.startswith("decoder.up.") for name in names):
        return "plain autoencoder"
    return "unknown"


def _unprefixed(checkpoint: Checkpoint) -> Checkpoint:
    """Without a prefix that stands before all names of StableSR's own tensors."""
    places = {name.find(_ENCODER) for name in checkpoint.tensors if _ENCODER in name}
    if len(places) != 1 or places == {0}:
        return checkpoint
    prefix = next(name for name in checkpoint.tensors if _ENCODER in name)[: places.pop()]
    return replace(
        checkpoint,
        tensors={name.removeprefix(prefix): t for name, t in checkpoint.tensors.items()},
    )


def _check_roles(diffusion: Checkpoint, autoencoder: Checkpoint, base: Path | None) -> None:
    kinds = _kind(diffusion), _kind(autoencoder)
    if kinds[0] == "autoencoder" and kinds[1] in ("whole", "guidance"):
        raise CheckpointMismatch(
            f"The two files are swapped: {autoencoder.path} is {_KINDS[kinds[1]]} and "
            f"{diffusion.path} is {_KINDS[kinds[0]]}; the diffusion file comes first."
        )
    if kinds[0] not in ("whole", "guidance"):
        raise CheckpointMismatch(_wrong(diffusion, "diffusion file", "whole"))
    if kinds[1] != "autoencoder":
        raise CheckpointMismatch(_wrong(autoencoder, "autoencoder file", "autoencoder"))
    if kinds[0] == "whole" and base is not None:
        raise CheckpointMismatch(f"{diffusion.path} is whole and takes no base: leave {base} out.")
    if kinds[0] == "guidance" and base is None:
        raise CheckpointMismatch(
            f"{diffusion.path} holds {_KINDS['guidance']}: give Stable Diffusion 2.1 as the base, "
            "a folder of diffusers or a single file."
        )


def _wrong(checkpoint: Checkpoint, role: str, wanted: Kind) -> str:
    names = ", ".join(list(checkpoint.tensors)[:3]) or "none"
    return (
        f"{checkpoint.path} was given as the {role} and is {_KINDS[_kind(checkpoint)]} (its first "
        f"tensors: {names}); what belongs there is {_KINDS[wanted]}."
    )


def _open_base(path: Path) -> Checkpoint | DiffusersFolder:
    if is_diffusers_folder(path):
        return DiffusersFolder(path)
    if path.is_dir():
        raise CheckpointUnreadable(f"{path} is no folder of diffusers: it lacks unet/ or vae/.")
    base = open_checkpoint(path)
    if _kind(base) != "base":
        raise CheckpointMismatch(_wrong(base, "base", "base"))
    return base
