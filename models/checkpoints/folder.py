"""A folder of our own weights: `config.json` and `model.safetensors`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.config import ModelConfig
from models.errors import CheckpointMismatch, WeightsNotFound
from models.networks.bundle import Networks
from models.presets import Preset

__all__ = ["load_folder", "preset_folder", "random_networks", "save_folder", "weights_root"]

_CONFIG, _WEIGHTS = "config.json", "model.safetensors"


def weights_root() -> Path:
    """Where pulled and converted weights live: STABLESR_WEIGHTS, else the user's data folder."""
    named = os.environ.get("STABLESR_WEIGHTS")
    return Path(named) if named else Path.home() / ".local" / "share" / "stablesr" / "weights"


def preset_folder(preset: Preset) -> Path:
    """The folder of a preset's weights; it need not exist."""
    if preset.embedded:
        return Path(__file__).parents[1] / "weights" / preset.name
    return weights_root() / preset.name


def save_folder(networks: Networks, folder: Path, dtype: torch.dtype = torch.float16) -> None:
    """Writes the folder, each file aside first and then renamed."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.to(dtype).contiguous() for k, v in networks.state_dict().items()}
    aside = folder / f"{_WEIGHTS}.part"
    save_file(tensors, aside, metadata={"format": "pt"})
    aside.chmod(0o644)  # safetensors leaves the file to its owner alone
    os.replace(aside, folder / _WEIGHTS)
    aside = folder / f"{_CONFIG}.part"
    aside.write_text(json.dumps(networks.config.to_json(), indent=2) + "\n")
    os.replace(aside, folder / _CONFIG)


def load_folder(folder: Path, device: torch.device, dtype: torch.dtype) -> Networks:
    """Networks of a folder, in evaluation mode, on the device.

    Raises:
        WeightsNotFound: the folder or one of its files is not there.
        CheckpointMismatch: tensors are missing, left over or of the wrong shape, by name.
    """
    for name in (_CONFIG, _WEIGHTS):
        if not (folder / name).is_file():
            raise WeightsNotFound(f"There are no weights in {folder}: {name} is missing.")
    config = ModelConfig.from_json(json.loads((folder / _CONFIG).read_text()))
    tensors = load_file(folder / _WEIGHTS)
    with torch.device("meta"):
        networks = Networks(
            config, first_stage=any(name.startswith("first_stage.") for name in tensors)
        )
    _check(folder, networks.state_dict(), tensors)
    moved = {k: v.to(device=device, dtype=dtype) for k, v in tensors.items()}
    networks.load_state_dict(moved, assign=True)
    return networks.eval().requires_grad_(False)


def _check(folder: Path, wanted: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    faults = [f"missing {name}" for name in sorted(wanted.keys() - found.keys())]
    faults += [f"left over {name}" for name in sorted(found.keys() - wanted.keys())]
    faults += [
        f"{name} has shape {tuple(found[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in sorted(wanted.keys() & found.keys())
        if wanted[name].shape != found[name].shape
    ]
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise CheckpointMismatch(
            f"{folder / _WEIGHTS} does not fit its config.json: {'; '.join(faults[:5])}{more}."
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
