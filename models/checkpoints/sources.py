"""What a user gives to be converted: which file is which, and where each of our tensors lies.

A diffusion file is either whole, as released, or holds StableSR alone: the time-aware encoder and
the modulation, as in webui_768v_139.safetensors. The size of that file is, to the byte, that of
those 376 tensors in float32 under the names of the whole file, so these names are taken; a common
prefix before them is cut off. Such a file needs a base, which is Stable Diffusion 2.1 as a folder
of diffusers or as one file.

Our networks have diffusers' names, so most tensors of such a folder map by name: `unet/` to unet,
`vae/` to first_stage. Two things differ. Autoencoders saved before diffusers 0.15 name the
projections of their attention query, key, value and proj_attn. And the text tower of transformers'
`CLIPTextModel` has q, k and v apart, and lacks the last block, which Stable Diffusion 2 does not
use.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from models.checkpoints.containers import Checkpoint, join, open_checkpoint, read_index
from models.checkpoints.keys import (
    ENCODER,
    SCHEDULE_KEYS,
    TEXT,
    UNET,
    config_of,
    our_tensors,
    released_names,
)
from models.config import ModelConfig, Prediction, TextConfig, UNetConfig
from models.errors import CheckpointMismatch, CheckpointUnreadable
from models.networks.bundle import Networks

UNET_SIZES, TEXT_SIZES = UNetConfig(), TextConfig()
"""Of Stable Diffusion 2.1; the UNet's modulation is not in the folder."""
_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_TEXT_LAYERS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "out": "self_attn.out_proj",
    "fc": "mlp.fc1",
    "proj": "mlp.fc2",
}

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
        folder = _open_parts(sources.base, prediction)
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
        is_own = parts[0].startswith(ENCODER) or _MODULATION in parts[0]
        owner = "diffusion" if sources.base is None or is_own else "base"
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
    files += [read(part, _part_names(network, ours)) for network, part in folder.items()]
    files.append(read(autoencoder, names["autoencoder"]))
    return config, join(diffusion.path.parent, files), omissions


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


def _open_parts(path: Path, prediction: Prediction) -> dict[str, Checkpoint]:
    """The tensors of a folder by network: unet, first_stage and, where there is one, text.

    Raises:
        CheckpointUnreadable: a part is missing or damaged.
        CheckpointMismatch: the folder says that it predicts something else than `prediction`.
    """
    if not ((path / "unet").is_dir() and (path / "vae").is_dir()):
        raise CheckpointUnreadable(f"{path} is no folder of diffusers: it lacks unet/ or vae/.")
    _check_prediction(path, prediction)
    parts = {"unet": _open_part(path / "unet"), "first_stage": _open_part(path / "vae", _modern)}
    if (path / "text_encoder").is_dir():
        text = _open_part(path / "text_encoder", lambda name: name.removeprefix("text_model."))
        # A table of the numbers 0 to 76, which older versions of transformers saved.
        tensors = {n: t for n, t in text.tensors.items() if n != "embeddings.position_ids"}
        parts["text"] = replace(text, tensors=tensors)
    return parts


def _part_names(network: str, ours: Iterable[str]) -> dict[str, list[str]]:
    """The tensors of a part that each of ours in that network is made of, along the first axis."""
    names = {}
    for name in ours:
        owner, _, rest = name.partition(".")
        if owner == network and ".modulation." not in name:
            names[name] = _text_names(rest) if network == "text" else [rest]
    return names


def _text_names(name: str) -> list[str]:
    match name.split("."):
        case ["blocks", block, "qkv", leaf]:
            return [f"encoder.layers.{block}.self_attn.{x}_proj.{leaf}" for x in "qkv"]
        case ["blocks", block, layer, leaf]:
            return [f"encoder.layers.{block}.{_TEXT_LAYERS[layer]}.{leaf}"]
        case ["ln_final", leaf]:
            return [f"final_layer_norm.{leaf}"]
    kind = "position" if name == "positional_embedding" else "token"
    return [f"embeddings.{kind}_embedding.weight"]


def _check_prediction(folder: Path, prediction: Prediction) -> None:
    """Whether the base predicts what the preset needs, where the folder says so."""
    path = folder / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        return
    try:
        actual = json.loads(path.read_text()).get("prediction_type", "epsilon")
    except (ValueError, AttributeError) as error:
        raise CheckpointUnreadable(f"{path} is damaged: {error}.") from error
    if actual != prediction:
        base = "2.1 (768 pixels)" if prediction == "v_prediction" else "2.1-base (512 pixels)"
        raise CheckpointMismatch(
            f"{folder} is another base: it predicts {actual}, and this preset needs one that "
            f"predicts {prediction}, Stable Diffusion {base}."
        )


def _open_part(folder: Path, rename: Callable[[str], str] = str) -> Checkpoint:
    """All tensors of a part, from one file or several; float32 before the fp16 variant."""
    for kind, variant, stem in product(("safetensors", "bin"), ("", ".fp16"), _STEMS):
        single = folder / f"{stem}{variant}.{kind}"
        index = folder / f"{stem}.{kind}.index{variant}.json"
        if single.is_file():
            part = open_checkpoint(single)
        elif index.is_file():
            part = join(folder, map(open_checkpoint, read_index(index)))
        else:
            continue
        return replace(part, tensors={rename(name): t for name, t in part.tensors.items()})
    raise CheckpointUnreadable(
        f"{folder} holds no weights: a part of a diffusers folder has a file such as "
        f"{_STEMS[0]}.safetensors or {_STEMS[1]}.safetensors."
    )


def _modern(name: str) -> str:
    """A name in the autoencoder as diffusers gives it since 0.15."""
    start, attention, leaf = name.partition(".attentions.0.")
    old, _, kind = leaf.rpartition(".")
    return f"{start}{attention}{_OLD_ATTENTION[old]}.{kind}" if old in _OLD_ATTENTION else name
