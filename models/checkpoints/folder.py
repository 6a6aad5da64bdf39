"""A folder of our own weights: `config.json`, and `model.safetensors` in one file or in several."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from models.checkpoints.description import describe
from models.checkpoints.mismatch import check_names
from models.checkpoints.places import CONFIG, INDEX, WEIGHTS, preset_folder, weights_root
from models.checkpoints.safetensors_file import open_safetensors
from models.checkpoints.shards import join, read_index
from models.checkpoints.stored import Checkpoint
from models.config import ModelConfig
from models.errors import CheckpointMismatch, WeightsNotFound
from models.networks.bundle import Networks

__all__ = [
    "UNUSED",
    "load_folder",
    "open_folder",
    "preset_folder",
    "random_networks",
    "save_folder",
    "weights_root",
]

UNUSED = ("first_stage.decoder.", "first_stage.post_quant_conv.")
"""How the names of tensors begin that no step calls: images are decoded by the CFW file's decoder.
Conversions used to keep them."""


def save_folder(networks: Networks, folder: Path, dtype: torch.dtype = torch.float16) -> None:
    """Writes the folder, each file aside first and then renamed."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.to(dtype).contiguous() for k, v in networks.state_dict().items()}
    aside = folder / f"{WEIGHTS}.part"
    save_file(tensors, aside, metadata={"format": "pt"})
    aside.chmod(0o644)  # safetensors leaves the file to its owner alone
    os.replace(aside, folder / WEIGHTS)
    aside = folder / f"{CONFIG}.part"
    aside.write_text(json.dumps(networks.config.to_json(), indent=2) + "\n")
    os.replace(aside, folder / CONFIG)


def open_folder(folder: Path) -> tuple[Networks, Checkpoint]:
    """Networks without numbers, on the meta device, and where their numbers lie.

    Raises:
        WeightsNotFound: the folder or one of its files is not there.
        CheckpointUnreadable: a file is damaged.
        CheckpointMismatch: tensors are missing, left over or of the wrong shape, by name.
    """
    config = describe(folder).config
    found = join(folder, map(open_safetensors, _files(folder)))
    used = {name: t for name, t in found.tensors.items() if not name.startswith(UNUSED)}
    found = replace(found, tensors=used)
    own = any(name.startswith("first_stage.") for name in used)
    with torch.device("meta"):
        networks = Networks(config, first_stage="encoder" if own else None)
    wanted = {name: tensor.shape for name, tensor in networks.state_dict().items()}
    check_names(folder, found.shapes, wanted, to=f"its {CONFIG}")
    return networks, found


def _files(folder: Path) -> list[Path]:
    """The files that hold the folder's tensors."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    index = folder / INDEX
    if not index.is_file():
        raise WeightsNotFound(f"There are no weights in {folder}: {WEIGHTS} is missing.")
    files = read_index(index)
    for path in files:
        if not path.is_file():
            raise WeightsNotFound(f"The weights in {folder} are not complete: {path} is missing.")
    return files


def load_folder(folder: Path, device: torch.device, dtype: torch.dtype) -> Networks:
    """Networks of a folder, in evaluation mode, on the device.

    Raises:
        WeightsNotFound: the folder or one of its files is not there.
        CheckpointUnreadable: a file is damaged.
        CheckpointMismatch: tensors are missing, left over or of the wrong shape, or do not fit
            into `dtype`, by name.
    """
    networks, found = open_folder(folder)
    moved: dict[str, Tensor] = {}
    for name, stored in found.tensors.items():
        # Read, not mapped: mapped pages count as free memory, and plans add what is loaded.
        tensor = stored.read()
        moved[name] = tensor.to(device=device, dtype=dtype)
        # Conversion keeps what float16 cannot hold in float32.
        if (tensor.dtype, dtype) == (torch.float32, torch.float16):
            _check_fits(folder, name, moved[name])
    networks.load_state_dict(moved, assign=True)
    return networks.eval().requires_grad_(False)


def _check_fits(folder: Path, name: str, tensor: Tensor) -> None:
    if not bool(tensor.isfinite().all()):
        raise CheckpointMismatch(
            f"{name} in {folder} has values that float16 cannot hold: use bfloat16 or float32."
        )


def random_networks(
    config: ModelConfig, device: torch.device, dtype: torch.dtype, seed: int = 0
) -> Networks:
    """Networks with random weights of sensible size: for timing, where values do not matter."""
    with torch.device("meta"):
        networks = Networks(config)
    networks = networks.to(dtype).to_empty(device=device)
    generator = torch.Generator(device=device).manual_seed(seed)
    with torch.no_grad():
        for name, parameter in networks.named_parameters():
            if parameter.ndim > 1:
                fan_in = parameter[0].numel()
                parameter.normal_(0, 0.9 / fan_in**0.5, generator=generator)
            else:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
    return networks.eval().requires_grad_(False)
