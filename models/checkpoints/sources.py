"""What a user gives to be converted: which file is which, and where each of our tensors lies.

A diffusion file is either whole, as released, or holds StableSR alone: the time-aware encoder and
the modulation, as in webui_768v_139.safetensors. The size of that file is, to the byte, that of
those 376 tensors in float32 under the names of the whole file, so these names are taken; a common
prefix before them is cut off. Such a file needs a base, which is Stable Diffusion 2.1 as a folder
of diffusers or as one file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from models.checkpoints.containers import Checkpoint, join, open_checkpoint
from models.checkpoints.diffusers_folder import TEXT_SIZES, UNET_SIZES, open_parts, part_names
from models.checkpoints.inventory import config_of
from models.checkpoints.keys import ENCODER, SCHEDULE_KEYS, TEXT, UNET, our_tensors, released_names
from models.config import ModelConfig, Prediction
from models.errors import CheckpointMismatch
from models.networks.bundle import Networks

_MODULATION = ".spade."
_TRAINING_PREFIXES = {
    "model_ema.": "moving averages of the weights",
    "loss.": "the loss that the autoencoder was trained with",
}
"""What else training leaves in a state dict. Nothing is dropped that is not named here."""

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


def open_sources(
    sources: Sources, prediction: Prediction
) -> tuple[ModelConfig, Checkpoint, Counter[str]]:
    """Finds every tensor of the networks in the files; reads headers only.

    Returns:
        The sizes of the networks; their tensors by our names, all of the first stage and, where
        there is one, the text tower included; how many tensors were left out, by what they are.

    Raises:
        CheckpointUnreadable: a file is missing, damaged or no checkpoint.
        CheckpointMismatch: a file is not what it was given as, or has tensors that are missing,
            left over or of the wrong shape, by name.
    """
    diffusion = _without_prefix(open_checkpoint(sources.diffusion))
    autoencoder = open_checkpoint(sources.autoencoder)
    _check_roles(diffusion, autoencoder, sources.base)
    base, folder = None, {}
    if sources.base is not None and sources.base.is_dir():
        folder = open_parts(sources.base, prediction)
    elif sources.base is not None:
        base = open_checkpoint(sources.base)
        _check_role(base, "base", "base")
    try:
        config = config_of(
            {**base.shapes, **diffusion.shapes} if base else diffusion.shapes,
            autoencoder.shapes,
            prediction,
            unet=UNET_SIZES if folder else None,
            text=TEXT_SIZES if "text" in folder else None,
        )
        ours = _meta_tensors(config)
    except CheckpointMismatch as error:
        raise CheckpointMismatch(
            f"{diffusion.path} and {autoencoder.path} do not make up a StableSR: {error}"
        ) from error

    names: dict[str, dict[str, list[str]]] = {"diffusion": {}, "base": {}, "autoencoder": {}}
    for name, parts in released_names(ours, config).items():
        owner = "diffusion" if sources.base is None or _is_guidance(parts[0]) else "base"
        names["autoencoder" if name.startswith("autoencoder.") else owner][name] = parts
    omissions: Counter[str] = Counter()

    def read(file: Checkpoint, names: Mapping[str, Sequence[str]]) -> Checkpoint:
        reasons = {name: _omission(name, config) for name in (*file.tensors, *file.others)}
        omissions.update(reason for reason in reasons.values() if reason)
        tensors = {name: t for name, t in file.tensors.items() if reasons[name] is None}
        others = tuple(name for name in file.others if reasons[name] is None)
        rest = replace(file, tensors=tensors, others=others)
        return our_tensors(rest, names, ours, config.encoder.heads)

    files = [read(diffusion, names["diffusion"])]
    if base is not None:
        files.append(read(base, names["base"]))
    files += [read(part, part_names(network, ours)) for network, part in folder.items()]
    files.append(read(autoencoder, names["autoencoder"]))
    return config, join(diffusion.path.parent, files), omissions


def _is_guidance(name: str) -> bool:
    """Whether a released tensor is StableSR's own."""
    return name.startswith(ENCODER) or _MODULATION in name


def _omission(name: str, config: ModelConfig) -> str | None:
    """What a tensor of a released file is that no network has, "" where that goes without saying;
    None of all others."""
    if name in SCHEDULE_KEYS:
        return "tables of the noise schedule"
    if config.text is not None:
        block = f"transformer.resblocks.{config.text.layers - 1}."
        if name.startswith(tuple(TEXT + end for end in (block, "text_projection", "logit_scale"))):
            return ""
    return next((why for start, why in _TRAINING_PREFIXES.items() if name.startswith(start)), None)


@lru_cache(maxsize=1)
def _meta_tensors(config: ModelConfig) -> dict[str, Tensor]:
    """Every tensor of the networks of that size, all of the first stage included, without numbers.

    Raises:
        CheckpointMismatch: there are no networks of that size.
    """
    try:
        with torch.device("meta"):
            return Networks(config, first_stage="whole").state_dict()
    # What layers say of sizes that do not go together.
    except (ValueError, RuntimeError, IndexError, ZeroDivisionError) as error:
        raise CheckpointMismatch(
            f"no networks have the sizes of these tensors ({error}): {config}"
        ) from error


def _kind(checkpoint: Checkpoint) -> Kind:
    names = checkpoint.tensors.keys()
    encoder = any(name.startswith(ENCODER) for name in names)
    unet = any(name.startswith(UNET) and _MODULATION not in name for name in names)
    if encoder or unet:
        return "guidance" if not unet else "whole" if encoder else "base"
    if any(name.startswith("decoder.fusion_layer_") for name in names):
        return "autoencoder"
    if any(name.startswith("decoder.up.") for name in names):
        return "plain autoencoder"
    return "unknown"


def _without_prefix(checkpoint: Checkpoint) -> Checkpoint:
    """Without a prefix that stands before all names of StableSR's own tensors."""
    prefixes = {n.partition(ENCODER)[0] for n in checkpoint.tensors if ENCODER in n}
    if len(prefixes) != 1:
        return checkpoint
    (prefix,) = prefixes
    tensors = {name.removeprefix(prefix): t for name, t in checkpoint.tensors.items()}
    return replace(checkpoint, tensors=tensors)


def _check_roles(diffusion: Checkpoint, autoencoder: Checkpoint, base: Path | None) -> None:
    kinds = _kind(diffusion), _kind(autoencoder)
    if kinds[0] == "autoencoder" and kinds[1] in ("whole", "guidance"):
        raise CheckpointMismatch(
            f"The two files are swapped: {autoencoder.path} is {_KINDS[kinds[1]]} and "
            f"{diffusion.path} is {_KINDS[kinds[0]]}; the diffusion file comes first."
        )
    _check_role(diffusion, "diffusion file", "whole", "guidance")
    _check_role(autoencoder, "autoencoder file", "autoencoder")
    if kinds[0] == "whole" and base is not None:
        raise CheckpointMismatch(f"{diffusion.path} is whole and takes no base: leave {base} out.")
    if kinds[0] == "guidance" and base is None:
        raise CheckpointMismatch(
            f"{diffusion.path} holds {_KINDS['guidance']}: give Stable Diffusion 2.1 as the base, "
            "a folder of diffusers or a single file."
        )


def _check_role(checkpoint: Checkpoint, role: str, *kinds: Kind) -> None:
    kind = _kind(checkpoint)
    if kind not in kinds:
        names = ", ".join(list(checkpoint.tensors)[:3]) or "none"
        raise CheckpointMismatch(
            f"{checkpoint.path} was given as the {role} and is {_KINDS[kind]} (its first tensors: "
            f"{names}); what belongs there is {_KINDS[kinds[0]]}."
        )
