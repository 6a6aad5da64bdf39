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
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from models.checkpoints.containers import Checkpoint, LazyTensor, open_checkpoint
from models.checkpoints.diffusers_folder import DiffusersFolder
from models.checkpoints.folder import check_names
from models.checkpoints.inventory import autoencoder_config, config_of, encoder_config, size
from models.checkpoints.keys import (
    SCHEDULE_KEYS,
    Entry,
    autoencoder_entries,
    diffusion_entries,
    from_released,
    to_released,
)
from models.config import ModelConfig, Prediction
from models.errors import CheckpointMismatch
from models.networks.bundle import Networks

_UNET, _ENCODER, _MODULATION = "model.diffusion_model.", "structcond_stage_model.", ".spade."
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


@dataclass(frozen=True)
class SourceTensors:
    """Where every tensor of the networks lies in the sources."""

    config: ModelConfig
    tensors: Mapping[str, LazyTensor]
    """By our names: unet, encoder, autoencoder, first_stage and, where there is one, text."""
    files: tuple[Path, ...]
    omissions: Mapping[str, int]
    """How many tensors were left out, by what they are."""
    foreign: tuple[str, ...]
    """Names of classes and functions in the files that have nothing to do with tensors."""


def open_sources(sources: Sources, prediction: Prediction) -> SourceTensors:
    """Finds every tensor of the networks in the files; reads headers only.

    Raises:
        CheckpointUnreadable: a file is missing, damaged or no checkpoint.
        CheckpointMismatch: a file is not what it was given as, or has tensors that are missing,
            left over or of the wrong shape, by name.
    """
    diffusion = _without_prefix(open_checkpoint(sources.diffusion))
    autoencoder = open_checkpoint(sources.autoencoder)
    _check_roles(diffusion, autoencoder, sources.base)
    base = None if sources.base is None else _open_base(sources.base, prediction)
    try:
        config = _config(diffusion, base, autoencoder, prediction)
        ours = _meta_tensors(config)
    except CheckpointMismatch as error:
        raise CheckpointMismatch(
            f"{diffusion.path} and {autoencoder.path} do not make up a StableSR: {error}"
        ) from error

    entries, heads = diffusion_entries(config), config.encoder.heads
    guidance = [entry for entry in entries if _is_guidance(entry.name)]
    rest = [entry for entry in entries if not _is_guidance(entry.name)]
    tensors = _select(autoencoder, autoencoder_entries(config), ours, heads)
    tensors |= _select(diffusion, entries if base is None else guidance, ours, heads)
    if isinstance(base, DiffusersFolder):
        tensors |= base.tensors(ours)
    elif base is not None:
        tensors |= _select(base, rest, ours, heads)

    parts = [diffusion, autoencoder, *([base] if isinstance(base, Checkpoint) else [])]
    omissions = Counter(reason for part in parts for reason in _omissions(part).values())
    files = [file for part in (diffusion, base, autoencoder) if part for file in part.files]
    foreign = sorted({name for part in parts for name in part.foreign})
    return SourceTensors(config, tensors, tuple(files), omissions, tuple(foreign))


def _is_guidance(name: str) -> bool:
    """Whether a released tensor is StableSR's own."""
    return name.startswith(_ENCODER) or _MODULATION in name


def _select(
    checkpoint: Checkpoint, entries: Sequence[Entry], ours: Mapping[str, Tensor], heads: int
) -> dict[str, LazyTensor]:
    """Our tensors that a file holds, which must be those of `entries` and what is left out.

    `ours` is as `_meta_tensors` gives them; `heads` are those of the time-aware encoder.

    Raises:
        CheckpointMismatch: tensors are missing, left over or of the wrong shape, by name.
    """
    outside = {entry.name for entry in entries if not entry.ours} | _omissions(checkpoint).keys()
    entries = [entry for entry in entries if entry.ours]
    check_names(
        checkpoint.path,
        {name: shape for name, shape in checkpoint.shapes.items() if name not in outside},
        {entry.name: to_released(entry, ours, heads).shape for entry in entries},
        others=(name for name in checkpoint.others if name not in outside),
    )

    def read(entry: Entry, name: str) -> Tensor:
        return from_released(entry, checkpoint.tensors[entry.name].read(), heads)[name]

    return {
        name: LazyTensor(
            checkpoint.tensors[entry.name].dtype,
            tuple(ours[name].shape),
            partial(read, entry, name),
        )
        for entry in entries
        for name in entry.ours
    }


def _omissions(checkpoint: Checkpoint) -> dict[str, str]:
    """Names in a released file that no network has, and what each is."""
    reasons: dict[str, str] = {}
    for name in (*checkpoint.tensors, *checkpoint.others):
        if name in SCHEDULE_KEYS:
            reasons[name] = "tables of the noise schedule"
        for prefix, reason in _TRAINING_PREFIXES.items():
            if name.startswith(prefix):
                reasons[name] = reason
    return reasons


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
    hidden = f"{_UNET}input_blocks.1.0{_MODULATION}mlp_shared.0.weight"
    text = base.text_config()
    return ModelConfig(
        unet=base.unet_config(size(shapes, hidden, 1), size(shapes, hidden)),
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


def _without_prefix(checkpoint: Checkpoint) -> Checkpoint:
    """Without a prefix that stands before all names of StableSR's own tensors."""
    prefixes = {n.partition(_ENCODER)[0] for n in checkpoint.tensors if _ENCODER in n}
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


def _open_base(path: Path, prediction: Prediction) -> Checkpoint | DiffusersFolder:
    if path.is_dir():
        return DiffusersFolder(path, prediction)
    base = open_checkpoint(path)
    _check_role(base, "base", "base")
    return base
