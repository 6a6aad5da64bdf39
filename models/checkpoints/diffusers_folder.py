"""Stable Diffusion 2.1 as a folder of diffusers: the base of a file that holds StableSR alone.

Our networks have diffusers' names, so most tensors map by name: `unet/` to unet, `vae/` to
first_stage. Two things differ. Autoencoders saved before diffusers 0.15 name the projections of
their attention query, key, value and proj_attn. And the text tower of transformers' `CLIPTextModel`
has q, k and v apart, and lacks the last block, which Stable Diffusion 2 does not use.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import product
from pathlib import Path

from models.checkpoints.containers import Checkpoint, join, open_checkpoint, read_index
from models.config import Prediction, TextConfig, UNetConfig
from models.errors import CheckpointMismatch, CheckpointUnreadable

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


def open_parts(path: Path, prediction: Prediction) -> dict[str, Checkpoint]:
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


def part_names(network: str, ours: Iterable[str]) -> dict[str, list[str]]:
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
