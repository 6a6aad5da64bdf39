"""Stable Diffusion 2.1 as a folder of diffusers: the base of a file that holds StableSR alone.

Our networks have diffusers' names, so most tensors map by name: `unet/` to unet, `vae/` to
first_stage. Two things differ. Autoencoders saved before diffusers 0.15 name the projections of
their attention query, key, value and proj_attn. And the text tower of transformers' `CLIPTextModel`
has q, k and v apart, and lacks the last block, which Stable Diffusion 2 does not use.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from models.checkpoints.containers import Checkpoint, LazyTensor, join, open_checkpoint, read_index
from models.checkpoints.folder import check_names
from models.checkpoints.inventory import count, size, text_config
from models.config import Prediction, TextConfig, UNetConfig
from models.errors import CheckpointMismatch, CheckpointUnreadable

_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_TEXT_LAYERS = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "out",
    "mlp.fc1": "fc",
    "mlp.fc2": "proj",
}
_VIT_H_WIDTH, _VIT_H_BLOCKS = 1024, 23


class DiffusersFolder:
    """The parts of a folder: `unet`, `vae` and, where there is one, `text_encoder`.

    Raises:
        CheckpointUnreadable: a part is missing or damaged.
        CheckpointMismatch: the folder says that it predicts something else than `prediction`.
    """

    def __init__(self, path: Path, prediction: Prediction) -> None:
        if not ((path / "unet").is_dir() and (path / "vae").is_dir()):
            raise CheckpointUnreadable(f"{path} is no folder of diffusers: it lacks unet/ or vae/.")
        _check_prediction(path, prediction)
        self.unet = _part(path / "unet")
        self.vae = _part(path / "vae", _modern)
        text = path / "text_encoder"
        self.text = _part(text, lambda n: n.removeprefix("text_model.")) if text.is_dir() else None

    @property
    def files(self) -> tuple[Path, ...]:
        return (*self.unet.files, *self.vae.files, *(self.text.files if self.text else ()))

    def unet_config(self, feature_width: int, modulation_width: int) -> UNetConfig:
        """Sizes of the UNet; those of the modulation, which is not in it, are given.

        Raises:
            CheckpointMismatch: a tensor that every UNet has is missing.
        """
        shapes = self.unet.shapes
        levels = count(shapes, r"down_blocks\.(\d+)\.")
        context = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
        widths = tuple(
            size(shapes, f"down_blocks.{i}.resnets.0.conv1.weight") for i in range(levels)
        )
        return UNetConfig(
            in_channels=size(shapes, "conv_in.weight", 1),
            out_channels=size(shapes, "conv_out.weight"),
            widths=widths,
            layers=count(shapes, r"down_blocks\.0\.resnets\.(\d+)\."),
            attention=tuple(
                any(name.startswith(f"down_blocks.{i}.attentions.") for name in shapes)
                for i in range(levels)
            ),
            head_channels=64 if widths and widths[0] % 64 == 0 else 16,
            context_width=size(shapes, context, 1),
            feature_width=feature_width,
            modulation_width=modulation_width,
        )

    def text_config(self) -> TextConfig | None:
        """Sizes of the whole tower, with the block that the folder lacks.

        Raises:
            CheckpointMismatch: it is another tower than that of Stable Diffusion 2.
        """
        if self.text is None:
            return None
        shapes = self.text.shapes
        blocks = count(shapes, r"encoder\.layers\.(\d+)\.")
        position, token = (f"embeddings.{kind}_embedding.weight" for kind in ("position", "token"))
        config = text_config(shapes, position, token, blocks + 1)
        if config.width == _VIT_H_WIDTH and blocks != _VIT_H_BLOCKS:
            raise CheckpointMismatch(
                f"{self.text.path} has {blocks} blocks, and Stable Diffusion 2's text encoder has "
                f"{_VIT_H_BLOCKS}."
            )
        return config

    def tensors(self, ours: Mapping[str, Tensor]) -> dict[str, LazyTensor]:
        """Our tensors that the folder holds: UNet without modulation, first stage, text tower.

        Raises:
            CheckpointMismatch: tensors are missing, left over or of the wrong shape, by name.
        """
        tensors = _by_name(self.unet, "unet.", ours)
        tensors |= _by_name(self.vae, "first_stage.", ours)
        return tensors if self.text is None else tensors | _text_tensors(self.text, ours)


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
        raise CheckpointMismatch(
            f"{folder} is another base: it predicts {actual}, and this preset needs one "
            f"that predicts {prediction}, Stable Diffusion "
            f"{'2.1 (768 pixels)' if prediction == 'v_prediction' else '2.1-base (512 pixels)'}."
        )


def _part(folder: Path, rename: Callable[[str], str] = str) -> Checkpoint:
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


def _by_name(part: Checkpoint, network: str, ours: Mapping[str, Tensor]) -> dict[str, LazyTensor]:
    """Tensors that have our name without the network's; the modulation is not among them."""
    reference = {
        name.removeprefix(network): tuple(tensor.shape)
        for name, tensor in ours.items()
        if name.startswith(network) and ".modulation." not in name
    }
    # Projections of the autoencoder's attention are linear, but some files keep them as 1x1
    # convolutions.
    shapes = {
        name: shape[:2] if shape[2:] == (1, 1) and len(reference.get(name, ())) == 2 else shape
        for name, shape in part.shapes.items()
    }
    check_names(part.path, shapes, reference, others=part.others)
    return {f"{network}{n}": _stack([part.tensors[n]], shape) for n, shape in reference.items()}


def _text_tensors(part: Checkpoint, ours: Mapping[str, Tensor]) -> dict[str, LazyTensor]:
    sources: dict[str, list[str]] = {
        "token_embedding.weight": ["embeddings.token_embedding.weight"],
        "positional_embedding": ["embeddings.position_embedding.weight"],
    }
    for leaf in ("weight", "bias"):
        sources[f"ln_final.{leaf}"] = [f"final_layer_norm.{leaf}"]
        for i in range(count(part.shapes, r"encoder\.layers\.(\d+)\.")):
            layer, block = f"encoder.layers.{i}", f"blocks.{i}"
            sources[f"{block}.qkv.{leaf}"] = [f"{layer}.self_attn.{x}_proj.{leaf}" for x in "qkv"]
            for name, our in _TEXT_LAYERS.items():
                sources[f"{block}.{our}.{leaf}"] = [f"{layer}.{name}.{leaf}"]
    shapes = {our: tuple(ours[f"text.{our}"].shape) for our in sources}
    reference = {
        name: (shapes[our][0] // len(names), *shapes[our][1:])
        for our, names in sources.items()
        for name in names
    }
    # A table of the numbers 0 to 76, which older versions of transformers saved.
    present = {n: s for n, s in part.shapes.items() if n != "embeddings.position_ids"}
    check_names(part.path, present, reference, others=part.others)
    return {
        f"text.{our}": _stack([part.tensors[name] for name in names], shapes[our])
        for our, names in sources.items()
    }


def _stack(parts: Sequence[LazyTensor], shape: tuple[int, ...]) -> LazyTensor:
    """Tensors along the first axis, in that shape."""
    return LazyTensor(
        parts[0].dtype, shape, lambda: torch.cat([part.read() for part in parts]).reshape(shape)
    )
